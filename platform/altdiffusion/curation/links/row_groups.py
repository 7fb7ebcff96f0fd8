"""Row groups of a part, as a unit sees them; a text part's are its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group's place: its number in the part, and its rows as numbers within the unit, which may be cut off."""

    number: int
    first: int
    rows: int


def overlapping(group_rows: npt.NDArray[np.int64], start: int, stop: int) -> tuple[RowGroup, ...]:
    """Return the row groups that hold rows `start` to `stop` of a part."""
    ends = np.cumsum(group_rows)
    begins = ends - group_rows
    return tuple(
        RowGroup(number=int(number), first=int(begins[number]) - start, rows=int(group_rows[number]))
        for number in np.flatnonzero((begins < stop) & (ends > start) & (group_rows > 0))
    )
