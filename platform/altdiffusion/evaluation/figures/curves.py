"""Curves of a sweep: a quantity over a setting of the sampler, a line with its band of intervals per state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from altdiffusion.evaluation.figures.drawing import WIDTH, Figure, Scale, fitted, tick_texts
from altdiffusion.storage.evaluation_values import Quantity, Value

Curve = Sequence[tuple[float, Value]]
"""Setting -> value, in ascending order of the setting."""
SETTINGS = {"guidance_scale": "guidance scale", "steps": "steps"}
_LEFT, _RIGHT, _HEIGHT, _APART = 46.0, 12.0, 190.0, 24.0


def curves(
    name: str, title: str, of: Quantity, setting: str, states: Mapping[str, Curve], order: Sequence[str]
) -> Figure:
    """Return the curves of a quantity over a setting; numbers of steps are on a logarithmic axis.

    Args:
        order: all states of the evaluation.
    """
    logarithmic = setting == "steps"
    better = "" if of.share else f" {'Less' if of.less else 'More'} is better."
    bounded = any(one.low is not None for curve in states.values() for _, one in curve)
    shown = "Bands are the intervals." if bounded else "This measure has no interval."
    figure = Figure(
        name=name,
        title=title,
        about=f"{shown}{' The axis of steps is logarithmic.' if logarithmic else ''}{better}",
        order=order,
    )
    top = figure.head(list(states)) + 20
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
            figure.tick(across.at(x), bottom + 17, f"{x:g}")
            free = across.at(x)
    figure.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, SETTINGS[setting], "tick", "middle")
    for state, curve in states.items():
        limits = [(across.at(x), one) for x, one in curve if one.low is not None and one.high is not None]
        edge = [(x, up.at(one.high or 0.0)) for x, one in limits]
        edge += [(x, up.at(one.low or 0.0)) for x, one in reversed(limits)]
        if len(limits) > 1:
            figure.band(state, edge)
    for state, curve in states.items():
        figure.line(state, [(across.at(x), up.at(one.value)) for x, one in curve])
        for x, one in curve:
            figure.mark(state, across.at(x), up.at(one.value), f"{state}, {SETTINGS[setting]} {x:g}: {one.text(of)}")
    unit = f"{of.title}{', %' if of.share else ''}"
    figure.text(0, top - 12, unit, "tick")
    figure.height = bottom + 42
    return figure
