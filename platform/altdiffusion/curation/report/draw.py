"""The geometry of a histogram: what `report.html.j2` draws as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from altdiffusion.curation.report.measures import Distribution
from altdiffusion.html.page import size

_MIN_BINS = 8
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bin; lengths are in units of the drawing."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place on the scale, and where its text is anchored: start, middle or end."""

    x: float
    anchor: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A distribution as a drawing; the scale is from `left` to `right` at height `base`, and bars end at `top`."""

    width: ClassVar[int] = 320
    height: ClassVar[int] = 124
    left: ClassVar[int] = 8
    right: ClassVar[int] = 312
    top: ClassVar[int] = 20
    base: ClassVar[int] = 100
    bars: tuple[Bar, ...]
    ticks: tuple[Mark, ...]
    median: Mark
    middle: str
    """The range of nine values out of ten."""


def histogram(found: Distribution) -> Histogram:
    """Return the drawing of a distribution that has values."""
    measure, counts = found.measure, found.counts
    low, high = min(counts), max(counts) + 1
    while high - low < _MIN_BINS:
        low, high = low - 1, high + 1
    if low < 0 <= min(counts):  # nothing measured here is below the scale's zero
        low, high = 0, high - low
    step = (Histogram.right - Histogram.left) / (high - low)
    tallest = max(counts.values())
    bars = []
    for bin, rows in counts.items():
        if rows:
            tall = max((Histogram.base - Histogram.top) * rows / tallest, 0.8)
            edges = f"{number(measure.edge(bin), measure.unit)} to {number(measure.edge(bin + 1), measure.unit)}"
            x = Histogram.left + (bin - low + 0.06) * step
            bars.append(Bar(x=x, y=Histogram.base - tall, width=step * 0.88, height=tall, text=f"{edges}: {rows:,}"))

    def mark(value: float, text: str, margin: float) -> Mark:
        x = Histogram.left + (float(measure.number(value)) - low) * step
        anchor = "start" if x < margin else "end" if x > Histogram.width - margin else "middle"
        return Mark(x=x, anchor=anchor, text=text)

    values = ticks(measure.edge(low), measure.edge(high), logarithmic=found.logarithmic, decimal=measure.unit == "B")
    least, most = number(found.low, measure.unit), number(found.high, measure.unit)
    return Histogram(
        bars=tuple(bars),
        ticks=tuple(mark(value, _tick(value, measure.unit), 16) for value in values),
        median=mark(found.median, f"median {number(found.median, measure.unit)}", Histogram.width / 4),
        middle=f"90 % within {least} – {most}" if least != most else f"90 % at {least}",
    )


def number(value: float, unit: str) -> str:
    """Return a value of a measure as people write it."""
    if unit == "B":
        return size(value)
    return f"{value:,.0f} px" if unit == "px" else f"{value:.2f}"


def ticks(low: float, high: float, *, logarithmic: bool, decimal: bool) -> list[float]:
    """Return about _TICKS round values of a scale; for a logarithmic one powers of two, or of ten if `decimal`."""
    if not logarithmic:
        rough = (high - low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [round(k * step, 10) for k in range(first, last + 1)]
    base = 10.0 if decimal else 2.0
    powers = range(math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1)
    found: list[float] = []
    for factors, every in (((1, 2, 5) if decimal else (1, 1.5), 1), ((1,), 1), ((1,), 2), ((1,), 4), ((1,), 8)):
        values = [base**k * factor for k in powers if k % every == 0 for factor in factors]
        found = [value for value in values if low <= value <= high]
        if len(found) <= _TICKS:
            break
    return found[:_TICKS]


def _tick(value: float, unit: str) -> str:
    if unit == "B":
        return size(value)
    return f"{value:,.0f}" if unit == "px" or value >= 100 else f"{value:g}"
