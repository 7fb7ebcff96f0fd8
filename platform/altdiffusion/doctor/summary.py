"""A report of many nodes on few lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from altdiffusion.doctor.line import OK, Line


def merged(lines: Iterable[Line]) -> list[Line]:
    """Return one line for all nodes of which a check reports the same; what is well is the same on all of them."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        same = () if line.level == OK else (line.found, line.remedy)
        groups.setdefault((line.name, line.level, *same), []).append(line)
    return [_of_group(group) for group in groups.values()]


def _of_group(group: list[Line]) -> Line:
    first = group[0]
    if len(group) == 1 or not first.node:
        return first
    differ = len({line.found for line in group}) > 1
    return replace(
        first, node=f"{len(group)} nodes", found=f"{first.found}; similar on the others" if differ else first.found
    )
