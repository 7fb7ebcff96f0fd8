"""A kept evaluation as quantities by state and language, and its sweeps as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.figures.curves import SETTINGS, Curve
from altdiffusion.languages import in_order
from altdiffusion.storage import evaluations
from altdiffusion.storage.documents import Document, optional_document
from altdiffusion.storage.evaluation_values import (
    ACCURACY,
    ByLanguage,
    Value,
    accuracy_of,
    facts_of,
    measures_of,
    rank,
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place of a curve: the set of images that a state drew with one value of a setting."""

    state: str
    setting: str
    value: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The values of an evaluation."""

    name: str
    level: float
    states: Sequence[str]
    """The states of the model in the order of the job."""
    quantities: Mapping[str, Mapping[str, ByLanguage]]
    """By quantity and by set of images: the states, and what they drew for a sweep."""
    points: Sequence[Point]
    controls: Mapping[str, Value]
    facts: Mapping[str, str]
    models: Mapping[str, str]
    """Content digest of each state's model folder."""

    def of_states(self, quantity: str) -> dict[str, ByLanguage]:
        """Return a quantity of the states that have it."""
        found = self.quantities[quantity]
        return {state: found[state] for state in self.states if state in found}

    def languages(self, quantity: str) -> list[str]:
        """Return the languages of a quantity, in the project's order."""
        return in_order(code for by in self.of_states(quantity).values() for code in by.languages)

    def curves(self, quantity: str, setting: str, language: str | None) -> dict[str, Curve]:
        """Return by state the curve of a quantity over a setting, in a language or (None) in the mean."""
        found: dict[str, Curve] = {}
        for state in self.states:
            curve = []
            for point in self.points:
                by = self.quantities[quantity].get(point.name)
                if (point.state, point.setting) != (state, setting) or by is None:
                    continue
                one = by.mean if language is None else by.languages.get(language)
                if one is not None:
                    curve.append((point.value, one))
            if len(curve) > 1:
                found[state] = sorted(curve, key=lambda place: place[0])
        return found


def read_kept(lake: str, name: str) -> Kept:
    """Return an evaluation that a lake keeps.

    Raises:
        AltDiffusionError: there is none of this name, or its file is damaged.
    """
    report = optional_document(evaluations.uri_of(lake, name))
    if report is None:
        there = evaluations.names(lake)
        shown = f"; the lake keeps {', '.join(there[:10])}" if there else ""
        raise AltDiffusionError(f"evaluation {name}", f"is not in the lake {lake}{shown}", "run jobs.evaluate first")
    states = list(report.objects("states"))
    if not states:
        raise report.wrong("states", "at least one state")
    quantities: dict[str, dict[str, ByLanguage]] = {}
    points: list[Point] = []
    judged = list(states)
    if "sweep" in report.value:
        sweep = report.object("sweep")
        points = [_point(place) for place in sweep.objects("points")]
        judged += sweep.objects("scores")
    for state in judged:
        accuracy = accuracy_of(state)
        if accuracy is not None:
            quantities.setdefault(ACCURACY, {})[state.name("state")] = accuracy
    for measure, name_of_set, by in measures_of(report):
        quantities.setdefault(measure, {})[name_of_set] = by
    models = report.object("models")
    return Kept(
        name=name,
        level=report.number("level"),
        states=[state.name("state") for state in states],
        quantities={name: quantities[name] for name in sorted(quantities, key=rank)},
        points=points,
        controls=_controls(report),
        facts=facts_of(report),
        models={state: models.text(state) for state in models.value},
    )


def _point(place: Document) -> Point:
    setting = place.text("setting")
    if setting not in SETTINGS:
        raise place.wrong("setting", f"one of {', '.join(SETTINGS)}")
    return Point(state=place.name("state"), setting=setting, value=place.number("value"), name=place.name("name"))


def _controls(report: Document) -> dict[str, Value]:
    if "controls" not in report.value:
        return {}
    controls = report.object("controls")
    found = {}
    for name in controls.value:
        one = controls.object(name)
        found[name] = Value(
            value=one.number("value"), low=one.number("low"), high=one.number("high"), images=one.count("total")
        )
    return found
