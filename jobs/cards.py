"""Scores of an evaluation, kept in the lake and shown on the cards of their models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from altdiffusion.evaluation.figures.change_page import page_of_states
from altdiffusion.evaluation.figures.write import write_page
from altdiffusion.evaluation.outcomes import Outcomes
from altdiffusion.evaluation.retrieval_accuracy import StateScore
from altdiffusion.evaluation.statistics import LEVEL
from altdiffusion.evaluation.table import Report
from altdiffusion.generation.model import Model, resolve_model
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Version
from altdiffusion.training.exports.export import renew_card
from jobs.session import Session
from pipelines.evaluate import EvaluateConfig, all_points


def write_table(config: EvaluateConfig, session: Session, report: Report) -> None:
    """Write the table as JSON, Markdown and text, and attach the files to the run."""
    for suffix, data in (
        ("json", files.canonical_json(report.to_json())),
        ("md", report.to_markdown().encode()),
        ("txt", report.to_text().encode()),
    ):
        files.write_atomic(f"{config.output}.{suffix}", data)
        session.run.artifact(f"{config.output}.{suffix}")


def write_changes(config: EvaluateConfig, session: Session, report: Report) -> None:
    """Write the comparison of each state with the one before it as a page, and attach it; one state has none."""
    page = page_of_states(config.name, report)
    if page is not None:
        files.write_atomic(f"{config.output}-changes.html", page.encode())
        session.run.artifact(f"{config.output}-changes.html")


def record_scores(
    config: EvaluateConfig,
    session: Session,
    report: Report,
    protocol: Mapping[str, Any] | None = None,
    outcomes: Mapping[str, Outcomes] | None = None,
) -> None:
    """Store the report and the outcomes under the evaluation's name, and renew the card of each state's model."""
    table = pa.concat_tables([one.table(name) for name, one in outcomes.items()]) if outcomes else None
    models = models_of(config, session)
    contents = {name: model.content for name, model in models.items()}
    evaluations.write(session.lake.uri, config.name, report.to_json(), contents, protocol=protocol, outcomes=table)
    for model in models.values():
        renew_card(session.lake.uri, model.uri)


def record_variety(session: Session, report: Report, drawn: Mapping[str, Version]) -> None:
    """Record memorisation and diversity of each state as metrics, linked to its checkpoint and its images."""
    for state, one in report.variety.items():
        metrics = {f"{state}/{name}": value for name, value in one.metrics().items()}
        for origin in drawn[state].manifest.parent_refs if metrics else ():
            if origin.kind in ("checkpoint", "model"):
                session.run.measured(origin, metrics, datasets=[drawn[state]])


def record_unjudged(config: EvaluateConfig, session: Session, protocol: Mapping[str, Any]) -> None:
    """Store a report without scores, for the measures of images that no judge names."""
    report = {"level": LEVEL, "states": [{"state": state.name} for state in config.states], "protocol": protocol}
    contents = {name: model.content for name, model in models_of(config, session).items()}
    evaluations.write(session.lake.uri, config.name, report, contents)


def record_sweep(config: EvaluateConfig, session: Session, scores: Mapping[str, StateScore]) -> None:
    """Add the points of the sweep, and the scores of their images, to the stored report."""
    points = [point.to_json() for point in all_points(config)]
    if points:
        part = {"points": points, "scores": [score.to_json() for score in scores.values()]}
        evaluations.extend(session.lake.uri, config.name, {"sweep": part})


def finish(config: EvaluateConfig, session: Session) -> None:
    """Write the page of the evaluation and attach it to the run; renew the cards, which quote the measures."""
    for path in write_page(session.lake.uri, config.name, f"{config.output}.html"):
        session.run.artifact(path)
    if config.measures is not None:
        for model in models_of(config, session).values():
            renew_card(session.lake.uri, model.uri)


def models_of(config: EvaluateConfig, session: Session) -> dict[str, Model]:
    """Return the model of each state by the state's name."""
    return {state.name: resolve_model(state.model, session.lake.uri) for state in config.states}
