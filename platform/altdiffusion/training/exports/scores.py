"""What a model card states of evaluations: tables for people, and the hub's `model-index` for programs.

A table has every language with its interval and the protocol. The index has the means only, and English where that is
what others are compared with: it is read by machines that list one value per measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.languages import in_order, named_language
from altdiffusion.storage import evaluations
from altdiffusion.storage.documents import of_mapping
from altdiffusion.storage.evaluation_values import (
    ACCURACY,
    ByLanguage,
    accuracy_of,
    facts_of,
    measures_of,
    quantity,
    rank,
)

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One stored evaluation of a model."""

    name: str
    state: str
    level: float
    accuracy: ByLanguage | None
    about: str
    """What the accuracy is a share of."""
    measures: Mapping[str, ByLanguage]
    facts: Mapping[str, str]
    cases: str | None
    """SHA-256 of the prompts."""


def evaluated(lake: str, content: str) -> Iterator[Evaluated]:
    """Yield the evaluations of the model folder with this content digest, ordered by name.

    Raises:
        AltDiffusionError: the file of one of them is damaged.
    """
    for name, kept, own in evaluations.of_model(lake, content):
        uri = evaluations.uri_of(lake, name)
        report, state = of_mapping(uri, kept), of_mapping(uri, own)
        accuracy = accuracy_of(state)
        about = ""
        if accuracy is not None:
            about = f"{state.count('concepts')} concepts, chance {100 * report.number('chance'):.1f} %"
        facts = facts_of(report)
        measured = {measure: by for measure, of, by in measures_of(report) if of == state.text("state")}
        yield Evaluated(
            name=name,
            state=state.text("state"),
            level=report.number("level"),
            accuracy=accuracy,
            about=about,
            measures={measure: measured[measure] for measure in sorted(measured, key=rank)},
            facts=facts,
            cases=facts.get("prompts, SHA-256"),
        )


def paragraphs(one: Evaluated) -> Iterator[str | Rows]:
    """Yield the texts and tables (first row: the heading) on one evaluation."""
    if one.accuracy is not None:
        yield (
            f"{one.name}, state {one.state}: a judge names the concept that an image was requested for; {one.about}."
        )
        of = quantity(ACCURACY)
        rows = [["language", "images named correctly", f"{one.level:.0%} interval", "images"]]
        for code in in_order(one.accuracy.languages):
            rate = one.accuracy.languages[code]
            interval = f"{of.shown(rate.low or 0.0)} to {of.shown(rate.high or 0.0)} %"
            rows.append([named_language(code), f"{of.shown(rate.value)} %", interval, f"{rate.images:,}"])
        yield rows
    if one.measures:
        yield f"{one.name}, state {one.state}: measures, with intervals of {one.level:.0%} in brackets."
        yield _measure_table(one.measures)
    if one.facts:
        yield "Protocol: " + "; ".join(f"{key}: {value}" for key, value in one.facts.items()) + "."


def _measure_table(measures: Mapping[str, ByLanguage]) -> Rows:
    codes = in_order(code for by in measures.values() for code in by.languages)
    rows = [["language", *(quantity(name).title for name in measures)]]
    for code in [*codes, None]:
        cells = []
        for name, by in measures.items():
            value = by.mean if code is None else by.languages.get(code)
            cells.append("-" if value is None else value.text(quantity(name)))
        rows.append(["mean" if code is None else named_language(code), *cells])
    return rows


def model_index(name: str, found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Return `model-index` in the hub's format: one result per evaluation; empty without any.

    Args:
        name: the model's name.
    """
    results = []
    for one in found:
        metrics = list(_metrics(one))
        if metrics:
            prompts: dict[str, Any] = {"type": one.name, "name": f"prompts of {one.name}"}
            if one.cases is not None:
                prompts["revision"] = one.cases
            results.append({"task": {"type": "text-to-image"}, "dataset": prompts, "metrics": metrics})
    return [{"name": name, "results": results}] if results else []


def _metrics(one: Evaluated) -> Iterator[dict[str, Any]]:
    values = []
    if one.accuracy is not None:
        values.append((ACCURACY, "English", one.accuracy.languages.get("en")))
        values.append((ACCURACY, "mean of the other languages", one.accuracy.mean))
    for name, by in one.measures.items():
        values.append((name, f"mean of {len(by.languages)} languages", by.mean))
    for name, where, value in values:
        if value is not None:
            of, interval = quantity(name), ""
            if value.low is not None and value.high is not None:
                interval = f", {one.level:.0%} interval {value.low:.6g} to {value.high:.6g}"
            yield {"type": name, "name": f"{of.title}, {where}{interval}", "value": round(value.value, 6)}
