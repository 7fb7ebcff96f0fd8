"""The radar plot: an axis per language, a polygon per state, and the interval of the last state as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from altdiffusion.evaluation.figures.drawing import WIDTH, Figure
from altdiffusion.languages import BY_CODE
from altdiffusion.storage.evaluation_values import ByLanguage, Quantity, Value

_RADIUS = 98.0
_RINGS = (0.25, 0.5, 0.75, 1.0)
LEAST = 3
"""Fewer languages make no polygon."""


def radar(
    name: str, of: Quantity, states: Mapping[str, ByLanguage], languages: Sequence[str], order: Sequence[str]
) -> Figure:
    """Return the radar plot of a share.

    Args:
        states: values of every state in all of the languages.
        languages: at least LEAST, in the order of the axes, clockwise from the top.
        order: all states of the evaluation.
    """
    *_, last = states
    figure = Figure(
        name=name,
        title=f"{of.title} by language",
        order=order,
        about=f"The outer ring is 100 %. The band is the interval of {last}.",
    )
    middle = figure.head(list(states)) + _RADIUS + 14
    figure.height = middle + _RADIUS + 24

    def at(place: int, radius: float) -> tuple[float, float]:
        angle = 2 * math.pi * place / len(languages)
        return WIDTH / 2 + radius * math.sin(angle), middle - radius * math.cos(angle)

    def ring(radii: Sequence[float]) -> list[tuple[float, float]]:
        return [at(place, _RADIUS * radius) for place, radius in enumerate(radii)]

    for share in _RINGS:
        figure.path("grid", ring([share] * len(languages)), closed=True)
    for place, code in enumerate(languages):
        figure.path("grid", [(WIDTH / 2, middle), at(place, _RADIUS)])
        x, y = at(place, _RADIUS + 10)
        side = round(math.sin(2 * math.pi * place / len(languages)), 6)
        anchor = "middle" if abs(side) < 0.05 else "start" if side > 0 else "end"
        figure.text(x, y + 4, BY_CODE[code].name if code in BY_CODE else code, anchor=anchor)
    values = {state: [by.languages[code] for code in languages] for state, by in states.items()}
    figure.band(last, _band(values[last], ring))
    for state, found in values.items():
        points = ring([one.value for one in found])
        figure.line(state, points, closed=True)
        for code, one, (x, y) in zip(languages, found, points, strict=True):
            figure.mark(state, x, y, f"{state}, {code}: {one.text(of)}")
    for share in _RINGS[:-1]:  # over the polygons, or these hide them
        figure.text(WIDTH / 2 + 3, middle - _RADIUS * share - 2, f"{100 * share:g} %", "tick halo")
    return figure


def _band(values: Sequence[Value], ring: object) -> list[tuple[float, float]]:
    """Return the outline between lower and upper limits; it runs out along the upper ones and back along the lower."""
    assert callable(ring)
    upper = ring([one.value if one.high is None else one.high for one in values])
    lower = ring([one.value if one.low is None else one.low for one in values])
    return [*upper, upper[0], lower[0], *reversed(lower)]
