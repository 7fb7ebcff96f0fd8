"""The page of an evaluation: all figures, the tables and the protocol in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from altdiffusion.evaluation.figures.curves import SETTINGS, curves
from altdiffusion.evaluation.figures.dots import dots
from altdiffusion.evaluation.figures.drawing import Figure
from altdiffusion.evaluation.figures.kept import Kept
from altdiffusion.evaluation.figures.radar import LEAST, radar
from altdiffusion.html.page import render
from altdiffusion.languages import BY_CODE, LANGUAGES
from altdiffusion.storage.evaluation_values import ACCURACY, Value, quantity

ENGLISH = "en"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of one quantity: a row per language, a column per state."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, str, Sequence[str]]]
    """Code, English name, native name (each possibly empty) and cells."""


def figures_of(kept: Kept) -> list[Figure]:
    """Return all figures of an evaluation: of states, then of sweeps."""
    return [*_state_figures(kept), *_sweep_figures(kept)]


def page_of(kept: Kept) -> str:
    """Return the page as HTML; the same evaluation gives the same page."""
    last = kept.states[-1]
    lead = kept.quantities.get(ACCURACY, {}).get(last)
    return render(
        "evaluation.html.j2",
        kept=kept,
        lead=_lead(lead.languages.get(ENGLISH), lead.mean) if lead is not None else [],
        state_figures=_state_figures(kept),
        sweep_figures=_sweep_figures(kept),
        tables=[_table(kept, name) for name in kept.quantities if kept.of_states(name)],
        sweeps=list(_sweep_tables(kept)),
        controls=[(name, one.text(quantity(ACCURACY)), one.images) for name, one in kept.controls.items()],
        quantities=[quantity(name).title for name in kept.quantities],
    )


def _lead(english: Value | None, others: Value | None) -> list[tuple[str, str]]:
    named = quantity(ACCURACY)
    found = (("English", english), ("mean of the other languages", others))
    return [(name, one.text(named)) for name, one in found if one is not None]


def _state_figures(kept: Kept) -> list[Figure]:
    found = []
    for name in kept.quantities:
        of, states, languages = quantity(name), kept.of_states(name), kept.languages(name)
        if not states:
            continue
        whole = {
            state: by for state, by in states.items() if all(code in by.languages for code in languages)
        }  # a polygon needs every corner
        if of.share and whole and len(languages) >= LEAST:
            found.append(radar(f"{_file(name)}-radar", of, whole, languages, kept.states))
        found.append(dots(f"{_file(name)}-languages", of, states, languages, kept.states, _mean(name)))
    return found


def _sweep_figures(kept: Kept) -> list[Figure]:
    found = []
    for setting, said in SETTINGS.items():
        for name in kept.quantities:
            of = quantity(name)
            panels = [(None, _mean(name))] if name != ACCURACY else [(ENGLISH, "English"), (None, _mean(name))]
            for language, where in panels:
                by_state = kept.curves(name, setting, language)
                if by_state:
                    title = f"{of.title} over {said}, {where}"
                    file = f"{_file(name)}-{setting.replace('_', '-')}{'-en' if language else ''}"
                    found.append(curves(file, title, of, setting, by_state, kept.states))
    return found


def _table(kept: Kept, name: str) -> Table:
    of, states = quantity(name), kept.of_states(name)
    native = {one.code: one.native for one in LANGUAGES if one.native != one.name}
    rows = [
        (code, BY_CODE[code].name if code in BY_CODE else "", native.get(code, ""), _cells(
            [by.languages.get(code) for by in states.values()], name))
        for code in kept.languages(name)
    ]  # fmt: skip
    if any(by.mean for by in states.values()):
        rows.append(("", _mean(name), "", _cells([by.mean for by in states.values()], name)))
    return Table(title=of.title, columns=list(states), rows=rows)


def _sweep_tables(kept: Kept) -> Iterator[Table]:
    """Yield per quantity and setting a table with a row per value of the setting."""
    for setting, said in SETTINGS.items():
        for name in kept.quantities:
            by_state = {state: dict(curve) for state, curve in kept.curves(name, setting, None).items()}
            if not by_state:
                continue
            values = sorted({value for curve in by_state.values() for value in curve})
            yield Table(
                title=f"{quantity(name).title} over {said}, {_mean(name)}",
                columns=list(by_state),
                rows=[
                    ("", f"{value:g}", "", _cells([curve.get(value) for curve in by_state.values()], name))
                    for value in values
                ],
            )


def _cells(values: Sequence[Value | None], name: str) -> list[str]:
    return ["–" if one is None else one.text(quantity(name)) for one in values]


def _mean(name: str) -> str:
    """Return what the mean of a quantity is called: that of the retrieval accuracy is over the others than English."""
    return "mean of others" if name == ACCURACY else "mean"


def _file(name: str) -> str:
    return name.replace("_", "-").replace("@", "-at-")
