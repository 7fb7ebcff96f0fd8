"""Batches that a run leaves out. The n-th step then takes the n-th batch that is left: still a pure function of n."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Windows = tuple[tuple[int, int], ...]
"""Batch numbers, each pair [first, one after the last]."""


def merged(values: Iterable[Sequence[int]]) -> Windows:
    """Return the same batches in ascending windows that neither cover nor touch each other."""
    found: list[tuple[int, int]] = []
    for first, after in sorted((int(value[0]), int(value[1])) for value in values):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(after, found[-1][1]))
        else:
            found.append((first, after))
    return tuple(found)


def batch_at(windows: Windows, step: int) -> int:
    """Return the number of the batch that step `step` takes, counted from 0; `windows` are merged."""
    batch = step
    for first, after in windows:
        if batch < first:
            break
        batch += after - first
    return batch


def step_of(windows: Windows, batch: int) -> int:
    """Return the step that takes a batch which is not left out; `windows` are merged."""
    return batch - sum(after - first for first, after in windows if first <= batch)
