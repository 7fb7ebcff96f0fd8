"""Markdown that is written by programs."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return a table, whose head is the first row.

    Args:
        texts: columns at the left that hold texts; the others hold numbers, which are aligned to the right.
    """
    lines = [f"| {' | '.join(row)} |" for row in rows]
    marks = ["---"] * texts + ["---:"] * (len(rows[0]) - texts)
    return "\n".join([lines[0], f"| {' | '.join(marks)} |", *lines[1:]])
