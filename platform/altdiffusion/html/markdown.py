"""Markdown that is written by programs."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table: the first row is its head, and all columns but the first are numbers, aligned to the right."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    marks = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join([lines[0], f"| {' | '.join(marks)} |", *lines[1:]])
