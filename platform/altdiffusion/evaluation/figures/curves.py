"""Curves of a sweep: a quantity over a setting of the sampler, a line with its band of intervals per state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from altdiffusion.evaluation.figures.drawing import WIDTH, Figure, Scale, colour, fitted, tick_texts
from altdiffusion.storage.evaluation_values import Quantity, Value

Curve = Sequence[tuple[float, Value]]
"""Setting -> value, in ascending order of the setting."""
SETTINGS = {"guidance_scale": "guidance scale", "steps": "steps"}
_LEFT, _RIGHT, _HEIGHT, _APART = 46.0, 12.0, 190.0, 24.0


def curves(name: str, title: str, of: Quantity, setting: str, states: Mapping[str, Curve]) -> Figure:
    """Return the curves of a quantity over a setting; numbers of steps are on a logarithmic axis."""
    logarithmic = setting == "steps"
    better = "" if of.share else f" {'Less' if of.less else 'More'} is better."
    figure = Figure(
        name=name,
        title=title,
        about=f"Bands are the intervals{', the axis of steps is logarithmic' if logarithmic else ''}.{better}",
    )
    top = figure.head(list(states)) + 16
    bottom = top + _HEIGHT
    settings = sorted({x for curve in states.values() for x, _ in curve})
    numbers = [
        v for curve in states.values() for _, one in curve for v in (one.value, one.low, one.high) if v is not None
    ]
    across = Scale(settings[0], settings[-1], _LEFT + 8, WIDTH - _RIGHT, logarithmic)
    up, ticks = fitted(numbers, bottom, top, share=of.share)
    for tick, text in zip(ticks, tick_texts(ticks, share=of.share), strict=True):
        figure.path("grid", [(_LEFT, up.at(tick)), (WIDTH - _RIGHT, up.at(tick))])
        figure.text(_LEFT - 6, up.at(tick) + 4, text, "tick", "end")
    figure.path("base", [(_LEFT, top), (_LEFT, bottom), (WIDTH - _RIGHT, bottom)])
    free = -_APART
    for x in settings:
        figure.path("base", [(across.at(x), bottom), (across.at(x), bottom + 4)])
        if across.at(x) - free >= _APART:
            figure.text(across.at(x), bottom + 17, f"{x:g}", "tick", "middle")
            free = across.at(x)
    figure.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, SETTINGS[setting], "tick", "middle")
    for place, curve in enumerate(states.values()):
        bounded = [(across.at(x), one) for x, one in curve if one.low is not None and one.high is not None]
        edge = [(x, up.at(one.high or 0.0)) for x, one in bounded]
        edge += [(x, up.at(one.low or 0.0)) for x, one in reversed(bounded)]
        if len(bounded) > 1:
            figure.path(f"band {colour(place)}", edge, closed=True)
    for place, (state, curve) in enumerate(states.items()):
        figure.line(place, [(across.at(x), up.at(one.value)) for x, one in curve])
        for x, one in curve:
            figure.mark(place, across.at(x), up.at(one.value), f"{state}, {SETTINGS[setting]} {x:g}: {one.text(of)}")
    unit = f"{of.title}{', %' if of.share else ''}"
    figure.text(0, top - 8, unit, "tick")
    figure.height = bottom + 42
    return figure
