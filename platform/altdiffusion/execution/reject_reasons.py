"""What a reject reason is, and the table of rejected rows. Which reasons there are, each part defines itself."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from altdiffusion.records import REJECTS


class Reason(str):
    """The stored name of a reason, with what reports and documents show of it."""

    sentence: str
    """What is wrong with the row, to be read after the reason."""
    withheld: bool
    """Whether neither address nor image of such a row may be shown: what is blocked or unsafe is not passed on."""

    def __new__(cls, name: str, sentence: str = "", withheld: bool = False) -> Reason:
        reason = super().__new__(cls, name)
        reason.sentence, reason.withheld = sentence, withheld
        return reason


class Reasons(dict[str, Reason]):
    """The reasons of one part of the platform, by name, in the order in which they were defined."""

    def define(self, name: str, sentence: str, *, withheld: bool = False) -> Reason:
        """Add a reason and return it."""
        if name in self:
            raise ValueError(f"reason {name} is defined twice")
        return self.setdefault(name, Reason(name, sentence, withheld))


def rejects_table(
    unit_id: str,
    *,
    row: Any,
    reason: Any,
    sample_id: Any = None,
    url: Any = None,
    language: Any = None,
    detail: Any = None,
) -> pa.Table:
    """Return columns of rejected rows, arrays or lists of one length, as a REJECTS table; None is null in every row."""
    rows = len(row)
    given = {"row": row, "sample_id": sample_id, "url": url, "language": language, "reason": reason, "detail": detail}
    columns: dict[str, Any] = {"unit_id": pa.array([unit_id], pa.string()).take(pa.array([0] * rows, pa.int32()))}
    for name, values in given.items():
        dtype = REJECTS.field(name).type
        if values is None:
            columns[name] = pa.nulls(rows, dtype)
        else:
            columns[name] = values if isinstance(values, pa.ChunkedArray) else pa.array(values, dtype)
    return pa.table([columns[field.name] for field in REJECTS], schema=REJECTS)
