"""The page that compares two states of a model by language: the share of each, and the paired change with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from altdiffusion.evaluation.comparison import Compared
from altdiffusion.evaluation.figures.drawing import WIDTH, Figure, fitted, tick_texts
from altdiffusion.evaluation.gate import outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import Change, StateScore, score
from altdiffusion.evaluation.statistics import LEVEL, Difference, Rate
from altdiffusion.evaluation.table import Report
from altdiffusion.html.page import render
from altdiffusion.languages import BY_CODE, named_language

MEAN = "mean of others"
_LEFT, _RIGHT, _ROW = 100.0, 10.0, 20.0
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Section:
    """Two states, and why they cannot be compared, if so."""

    first: str
    second: str
    about: str
    figure: Figure | None = None
    rows: Sequence[tuple[str, ...]] = ()
    """Language, shares of both states, change, p value, and the better state."""
    reasons: Sequence[str] = ()


def page_of_states(title: str, report: Report) -> str | None:
    """Return the page of an evaluation's states, each against the one before it; None where it compares none."""
    scores = {one.state: one for one in report.states}
    sections = [
        _section(change, scores[change.first], scores[change.second], f"evaluation {title}")
        for change in report.changes
    ]
    return _page(f"evaluation {title}", sections) if sections else None


def page_of_compared(title: str, lake: str, names: tuple[str, str], found: Sequence[Compared]) -> str:
    """Return the page of two models, from the evaluations that a lake keeps of them.

    Args:
        names: of the two models.

    Raises:
        AltDiffusionError: a file of outcomes is missing or damaged.
    """
    sections = []
    for one in found:
        about = f"evaluation {one.a.name}" if one.a.name == one.b.name else f"evaluations {one.a.name} and {one.b.name}"
        if one.change is None:
            sections.append(Section(first=names[0], second=names[1], about=about, reasons=one.reasons))
            continue
        change = replace(one.change, first=names[0], second=names[1])
        scores = [score(name, outcomes_of(lake, side)) for name, side in zip(names, (one.a, one.b), strict=True)]
        sections.append(_section(change, scores[0], scores[1], about))
    return _page(title, sections)


def _page(title: str, sections: Sequence[Section]) -> str:
    return render("change.html.j2", title=title, sections=sections, level=LEVEL)


def _section(change: Change, first: StateScore, second: StateScore, about: str) -> Section:
    rows: list[tuple[str, ...]] = [
        (named_language(code), *_shares(first.languages["all"][code], second.languages["all"][code]),
         *_moved(change, one, change.corrected[code]))
        for code, one in change.languages.items()
    ]  # fmt: skip
    if change.others is not None:
        shares = _shares(first.others["all"], second.others["all"])
        rows.append((MEAN, *shares, *_moved(change, change.others, change.others.p)))
    return Section(
        first=first.state, second=second.state, about=about, figure=_drawn(first.state, second.state, change), rows=rows
    )


def _shares(*rates: Rate) -> list[str]:
    return [f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" for rate in rates]


def _moved(change: Change, one: Difference, p: float) -> tuple[str, str, str]:
    better = "not shown" if p > _ALPHA else change.second if one.value > 0 else change.first
    moved = f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    return moved, "< 0.001" if p < 0.001 else f"{p:.3f}", better


def _drawn(first: str, second: str, change: Change) -> Figure:
    """Return the change of each language as a dot with its interval, around the line of no change."""
    title = f"{second} minus {first}, percentage points"
    figure = Figure(name="change", title=title, about="Whiskers are the intervals of the paired change.", order=[title])
    values = {**change.languages, **({} if change.others is None else {MEAN: change.others})}
    numbers = [100 * end for one in values.values() for end in (one.low, one.high, 0.0)]
    scale, ticks = fitted(numbers, _LEFT, WIDTH - _RIGHT, share=False)
    top = figure.head([])
    bottom = top + _ROW * len(values)
    for tick, text in zip(ticks, tick_texts(ticks, share=False), strict=True):
        figure.path("grid", [(scale.at(tick), top), (scale.at(tick), bottom)])
        figure.tick(scale.at(tick), bottom + 16, text)
    figure.path("base", [(scale.at(0.0), top), (scale.at(0.0), bottom)])
    for place, (code, one) in enumerate(values.items()):
        y = top + _ROW * (place + 0.5)
        figure.text(0, y + 4, BY_CODE[code].name if code in BY_CODE else code, "strong" if code == MEAN else "")
        figure.whisker(title, (scale.at(100 * one.low), y), (scale.at(100 * one.high), y))
        figure.mark(title, scale.at(100 * one.value), y, f"{code}: {100 * one.value:+.1f} points")
    figure.height = bottom + 24
    return figure
