"""Cells and tables of a report: shares, intervals and p values as text, and rows as Markdown or aligned columns."""

from __future__ import annotations

import unicodedata

from altdiffusion.evaluation.statistics import Difference, Rate

Rows = list[list[str]]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def share(rate: Rate | None) -> str:
    return "-" if rate is None else percent(rate.value)


def interval(rate: Rate | None) -> str:
    return "-" if rate is None else f"{percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def factor(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def points(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def p_of(difference: Difference | None) -> str:
    return "-" if difference is None else p_value(difference.p)


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(rows: Rows) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    marks = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join([lines[0], f"| {' | '.join(marks)} |", *lines[1:]])


def aligned(rows: Rows) -> str:
    widths = [max(_columns(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [_pad(cell, width, left=i == 0) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _columns(text))
    return text + space if left else space + text
