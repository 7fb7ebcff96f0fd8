"""When certain rows were drawn: every step of a checkpoint's run, and of the runs before it, that had one in its batch.

Nothing is remembered and nothing is enumerated: the order's inverse gives the positions of a row (`Order.draws_of`), so
that the cost grows with the rows that are asked for, not with the dataset.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Version
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.order.language_rows import language_rows
from altdiffusion.training.order.mixture import Source
from altdiffusion.training.order.permutation import I64
from altdiffusion.training.order.skips import Windows, step_of
from altdiffusion.training.seen import Past, Records, pasts_of

_AT_ONCE = 256
"""Checkpoints whose files are read in one go."""
Wanted = Mapping[str, I64]
"""Row numbers, ascending, by the reference of their version."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """When one run up to one step drew the wanted rows of one dataset."""

    run: str
    steps: int
    version: Version
    rows: I64
    """[K] the wanted rows, ascending."""
    row: I64
    """[J] the row of each draw."""
    step: I64
    """[J] the step that drew it, ascending; step 1 is a run's first, and checkpoint step-N has seen steps 1 to N."""

    @property
    def times(self) -> I64:
        """[K] how often each row was drawn."""
        return np.bincount(np.searchsorted(self.rows, self.row), minlength=len(self.rows)).astype(np.int64)

    @property
    def first_step(self) -> I64:
        """[K] the first step that drew each row; 0 where none did."""
        found = np.zeros(len(self.rows), np.int64)
        row, first = np.unique(self.row, return_index=True)
        found[np.searchsorted(self.rows, row)] = self.step[first]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return counts, without the rows."""
        return {
            "run": self.run,
            "steps": self.steps,
            "dataset": str(self.version.ref),
            "rows": len(self.rows),
            "distinct": len(np.unique(self.row)),
            "samples": len(self.row),
            "first_step": int(self.step[0]) if len(self.step) else None,
            "last_step": int(self.step[-1]) if len(self.step) else None,
        }


def drawn(lake: str, at: Checkpoint, wanted: Wanted) -> list[Drawn]:
    """Return when a checkpoint's run drew the wanted rows, then when the runs before it did, nearest first.

    Datasets without wanted rows are left out.

    Raises:
        AltDiffusionError: see `seen.pasts_of`.
    """
    return [part for past in pasts_of(lake, at) for part in _drawn(past, wanted)]


class Draws:
    """When rows were drawn, for many checkpoints of a lake.

    A run's draws are computed once, for its longest checkpoint. Files of weights are not read: the seal of a checkpoint
    and its state are checked, which is all that decides what it drew.
    """

    def __init__(self, lake: str, wanted: Wanted) -> None:
        self._lake, self._wanted = lake, wanted
        self._known: dict[tuple[str, Windows], list[Drawn]] = {}
        self._records = Records(lake)
        self._open = functools.lru_cache(maxsize=None)(checkpoints.open_sealed)

    def of(self, refs: Iterable[Ref]) -> Iterator[tuple[Ref, list[Drawn] | AltDiffusionError]]:
        """Yield for each checkpoint what `drawn` returns, or why that is not known; longest first."""
        ordered = sorted(refs, key=lambda ref: (ref.name, ref.digest), reverse=True)
        for start in range(0, len(ordered), _AT_ONCE):
            yield from self._of_some(ordered[start : start + _AT_ONCE])

    def _of_some(self, refs: Sequence[Ref]) -> Iterator[tuple[Ref, list[Drawn] | AltDiffusionError]]:
        """Yield the same for a few references, whose files are read along with each other."""
        for ref, at in zip(refs, checkpoints.open_sealed_many(self._lake, refs), strict=True):
            try:
                if isinstance(at, AltDiffusionError):
                    raise at
                pasts = pasts_of(self._lake, at, self._open, self._records)
                parts = [part for past in pasts for part in self._of_past(past)]
            except AltDiffusionError as error:
                yield ref, error
            else:
                yield ref, parts

    def _of_past(self, past: Past) -> list[Drawn]:
        """Return the draws of one run up to one step: those of a longer checkpoint that left out the same batches."""
        key = past.at.run, tuple(window for window in past.skips if window[0] < past.end)
        known = self._known.get(key)
        if known is None or any(part.steps < past.at.step for part in known):
            self._known[key] = known = _drawn(past, self._wanted)
        return [_until(part, past.at.step) for part in known]


def _until(part: Drawn, steps: int) -> Drawn:
    end = int(np.searchsorted(part.step, steps, side="right"))
    return Drawn(
        run=part.run, steps=steps, version=part.version, rows=part.rows, row=part.row[:end], step=part.step[:end]
    )


def _drawn(past: Past, wanted: Wanted) -> list[Drawn]:
    opened = {str(version.ref): version for version in past.versions if len(wanted.get(str(version.ref), ()))}
    empty = np.zeros(0, np.int64)
    rows: dict[str, list[I64]] = {ref: [empty] for ref in opened}
    steps: dict[str, list[I64]] = {ref: [empty] for ref in opened}
    for number, source in enumerate(past.sources):
        for ref, places, numbers in _places(source, wanted):
            for index, positions in past.order.draws_of(number, numbers, past.end * past.order.global_batch):
                batches = positions // past.order.global_batch
                taken = ~_inside(past.skips, batches)
                rows[ref].append(places[index[taken]])
                steps[ref].append(_steps(past.skips, batches[taken]))
    found = []
    for ref, version in opened.items():
        row, step = np.concatenate(rows[ref]), np.concatenate(steps[ref])
        order = np.lexsort((row, step))
        found.append(
            Drawn(
                run=past.at.run, steps=past.at.step, version=version, rows=wanted[ref], row=row[order], step=step[order]
            )
        )
    return found


def _places(source: Source, wanted: Wanted) -> Iterator[tuple[str, I64, I64]]:
    """Yield (reference, wanted rows of the version, their numbers in the source) for the versions of a source."""
    begin = 0
    for version in source.versions:
        ref = str(version.ref)
        rows = wanted.get(ref, np.zeros(0, np.int64))
        if source.language is None:
            if len(rows):
                yield ref, rows, rows + begin
            begin += version.rows
        elif version.manifest.rows_by_language.get(source.language):
            numbers = language_rows(version)[source.language]
            at = np.searchsorted(numbers, rows.astype(numbers.dtype))
            here = at < len(numbers)
            here[here] = numbers[at[here]] == rows[here]
            if here.any():
                yield ref, rows[here], at[here].astype(np.int64) + begin
            begin += len(numbers)


def _inside(skips: Windows, batches: I64) -> np.typing.NDArray[np.bool_]:
    found = np.zeros(len(batches), bool)
    for first, after in skips:
        found |= (batches >= first) & (batches < after)
    return found


def _steps(skips: Windows, batches: I64) -> I64:
    """Return the steps, counted from 1, that take batches which are not left out."""
    numbers, inverse = np.unique(batches, return_inverse=True)
    step = functools.partial(step_of, skips)
    steps = np.fromiter((step(int(number)) + 1 for number in numbers), np.int64, len(numbers))
    found: I64 = steps[inverse]
    return found
