"""Dots with intervals: a row per language, a dot with its whisker per state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from altdiffusion.evaluation.figures.drawing import WIDTH, Figure, fitted, tick_texts
from altdiffusion.languages import BY_CODE
from altdiffusion.storage.evaluation_values import ByLanguage, Quantity, Value

_LEFT, _RIGHT, _PITCH, _PADDING = 100.0, 10.0, 9.0, 9.0


def dots(
    name: str, of: Quantity, states: Mapping[str, ByLanguage], languages: Sequence[str], order: Sequence[str], mean: str
) -> Figure:
    """Return the dots of a quantity, with the mean in the last row where it is known.

    Args:
        order: all states of the evaluation.
        mean: label of the mean.
    """
    better = "" if of.share else f" {'Less' if of.less else 'More'} is better."
    values = [one for by in states.values() for one in [*by.languages.values(), *([by.mean] if by.mean else [])]]
    numbers = [v for one in values for v in (one.value, one.low, one.high) if v is not None]
    bounded = any(one.low is not None for one in values)
    about = f"{'Whiskers are the intervals' if bounded else 'This measure has no interval'}.{better}"
    figure = Figure(name=name, title=f"{of.title} by language", about=about, order=order)
    scale, ticks = fitted(numbers, _LEFT, WIDTH - _RIGHT, share=of.share)
    top = figure.head(list(states))
    row = 2 * _PADDING + _PITCH * (len(states) - 1)
    rows: list[tuple[str, str, list[Value | None]]] = [
        (code, BY_CODE[code].name if code in BY_CODE else code, [by.languages.get(code) for by in states.values()])
        for code in languages
    ]
    if any(by.mean for by in states.values()):
        rows.append(("mean", mean, [by.mean for by in states.values()]))
    bottom = top + row * len(rows)
    for tick, text in zip(ticks, tick_texts(ticks, share=of.share), strict=True):
        figure.path("grid", [(scale.at(tick), top), (scale.at(tick), bottom)])
        figure.tick(scale.at(tick), bottom + 16, text)
    for place, (code, label, found) in enumerate(rows):
        y = top + row * place
        figure.path("base" if code == "mean" else "grid", [(0, y), (WIDTH - _RIGHT, y)])
        figure.text(0, y + row / 2 + 4, label, "strong" if code == "mean" else "")
        for series, (state, one) in enumerate(zip(states, found, strict=True)):
            at = y + _PADDING + _PITCH * series
            if one is None:
                continue
            if one.low is not None and one.high is not None:
                figure.whisker(state, (scale.at(one.low), at), (scale.at(one.high), at))
            figure.mark(state, scale.at(one.value), at, f"{state}, {code}: {one.text(of)}")
    figure.path("base", [(0, bottom), (WIDTH - _RIGHT, bottom)])
    figure.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 33, f"{of.title}{', %' if of.share else ''}", "tick", "middle")
    figure.height = bottom + 40
    return figure
