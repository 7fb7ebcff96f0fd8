"""Bars and histograms as inline SVG: colours come from the page's classes, so they follow its light and dark."""

from __future__ import annotations

import html
import math

from altdiffusion.curation.report.measures import Distribution

WIDTH, HEIGHT = 320, 124
_LEFT, _RIGHT, _TOP, _BASE = 8, 312, 20, 100
_MIN_BINS = 8
_TICKS = 5


def bar(*shares: tuple[float, str]) -> str:
    """Shares of the full width as bars on one another, the first at the back; each with its class.

    It only repeats numbers that stand beside it as text, so screen readers skip it.
    """
    rects = "".join(
        f'<rect class="{name}" width="{100 * min(max(share, 0.0), 1.0):.2f}" height="8"/>' for share, name in shares
    )
    return f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'


def number(value: float, unit: str) -> str:
    """A value of a measure as people write it."""
    if unit == "B":
        for name, size in (("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} B"
    if unit == "px":
        return f"{value:,.0f} px"
    return f"{value:.2f}"


def histogram(found: Distribution, title: str) -> str:
    """A histogram with its median; what it says is also in its label."""
    measure, counts = found.measure, found.counts
    low, high = min(counts), max(counts) + 1
    while high - low < _MIN_BINS:
        low, high = low - 1, high + 1
    if low < 0 <= min(counts):  # nothing measured here is below the scale's zero
        low, high = 0, high - low
    step = (_RIGHT - _LEFT) / (high - low)
    tallest = max(counts.values())

    def x(value: float) -> float:
        return _LEFT + (float(measure.number(value)) - low) * step

    parts = []
    for bin, count in counts.items():
        if count:
            tall = max((_BASE - _TOP) * count / tallest, 0.8)
            said = f"{number(measure.edge(bin), measure.unit)} to {number(measure.edge(bin + 1), measure.unit)}"
            parts.append(
                f'<rect class="fill" x="{_LEFT + (bin - low) * step + step * 0.06:.2f}" y="{_BASE - tall:.2f}" '
                f'width="{step * 0.88:.2f}" height="{tall:.2f}"><title>{html.escape(said)}: {count:,}</title></rect>'
            )
    median = found.median
    at = x(median)
    anchor = "start" if at < WIDTH * 0.25 else "end" if at > WIDTH * 0.75 else "middle"
    parts.append(f'<path class="base" d="M{_LEFT} {_BASE}H{_RIGHT}"/>')
    parts.append(f'<path class="median" d="M{at:.2f} {_TOP - 4}V{_BASE}"/>')
    parts.append(
        f'<text class="mark" x="{at:.2f}" y="11" text-anchor="{anchor}">'
        f"median {html.escape(number(median, measure.unit))}</text>"
    )
    for value in _ticks(found, low, high):
        place = x(value)
        anchor = "start" if place < _LEFT + 8 else "end" if place > _RIGHT - 8 else "middle"
        parts.append(f'<path class="base" d="M{place:.2f} {_BASE}v4"/>')
        parts.append(
            f'<text x="{place:.2f}" y="{_BASE + 16}" text-anchor="{anchor}">{_tick(value, measure.unit)}</text>'
        )
    label = f"{title}: {found.rows:,} rows, {summary(found)}"
    return (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(label, quote=True)}">{"".join(parts)}</svg>'
    )


def summary(found: Distribution) -> str:
    """A distribution in words."""
    return f"median {number(found.median, found.measure.unit)}, {middle(found)}"


def middle(found: Distribution) -> str:
    """Where nine of ten values lie."""
    low, high = number(found.low, found.measure.unit), number(found.high, found.measure.unit)
    return f"90 % within {low} – {high}" if low != high else f"90 % at {low}"


def ticks(low: float, high: float, *, logarithmic: bool, decimal: bool) -> list[float]:
    """At most _TICKS round values of a scale; of a logarithmic one powers of two, or of ten if `decimal`."""
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


def _ticks(found: Distribution, low: int, high: int) -> list[float]:
    edge = found.measure.edge
    return ticks(edge(low), edge(high), logarithmic=found.logarithmic, decimal=found.measure.unit == "B")


def _tick(value: float, unit: str) -> str:
    if unit == "B":
        return number(value, unit)
    return f"{value:,.0f}" if unit == "px" or value >= 100 else f"{value:g}"
