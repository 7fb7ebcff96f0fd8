"""The scale curves of a plan as one figure: days and money over the number of GPUs, a line per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from altdiffusion.evaluation.figures.drawing import WIDTH, Figure, Scale
from pipelines.campaign.plan import COUNTS, Campaign, ScalePoint

_LEFT, _RIGHT, _HEIGHT = 52.0, 14.0, 170.0


def figure(campaign: Campaign) -> bytes:
    """Return the SVG file. Both axes are logarithmic: a straight line downwards halves the days per doubling."""
    runs = list(campaign.scale)
    drawn = Figure(
        name="scale", title="Days and money of each run over GPUs", about="Both axes are logarithmic.", order=runs
    )
    top = drawn.head(runs) + 20
    for title, value in (
        ("days", lambda point: point.days),
        (campaign.prices.currency, lambda point: point.money),
    ):
        top = _panel(drawn, title, top, campaign.scale, value) + 26
    drawn.height = top - 8
    return drawn.file


def _panel(
    drawn: Figure,
    title: str,
    top: float,
    scale: Mapping[str, Sequence[ScalePoint]],
    value: Callable[[ScalePoint], float],
) -> float:
    """Draw one quantity, and return where the next panel may begin."""
    bottom = top + _HEIGHT
    numbers = [value(point) for points in scale.values() for point in points]
    across = Scale(COUNTS[0], COUNTS[-1], _LEFT + 8, WIDTH - _RIGHT, True)
    ticks = _ticks(min(numbers), max(numbers))
    up = Scale(ticks[0], ticks[-1], bottom, top, True)
    for tick in ticks:
        drawn.path("grid", [(_LEFT, up.at(tick)), (WIDTH - _RIGHT, up.at(tick))])
        drawn.text(_LEFT - 6, up.at(tick) + 4, _short(tick), "tick", "end")
    drawn.path("base", [(_LEFT, top), (_LEFT, bottom), (WIDTH - _RIGHT, bottom)])
    for count in COUNTS:
        drawn.path("base", [(across.at(count), bottom), (across.at(count), bottom + 4)])
        drawn.tick(across.at(count), bottom + 17, str(count))
    drawn.text(0, top - 10, f"{title}, over GPUs", "tick")
    for run, points in scale.items():
        drawn.line(run, [(across.at(point.gpus), up.at(value(point))) for point in points])
        for point in points:
            label = f"{run}, {point.gpus} GPUs: {value(point):,.1f} {title}"
            drawn.mark(run, across.at(point.gpus), up.at(value(point)), label)
    return bottom + 24


def _ticks(low: float, high: float) -> list[float]:
    """Return round values, 1, 2 and 5 of each power of ten, that enclose the numbers."""
    steps = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for digit in (1, 2, 5)
    ]
    first = max(n for n, step in enumerate(steps) if step <= low)
    last = min(n for n, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]


def _short(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"
