"""Scores of an evaluation, kept in the lake and shown on the cards of their models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from altdiffusion.evaluation.outcomes import Outcomes
from altdiffusion.evaluation.table import Report
from altdiffusion.generation.model import resolve_model
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Version
from altdiffusion.training.exports.export import renew_card
from jobs.session import Session
from pipelines.evaluate import EvaluateConfig


def write_table(config: EvaluateConfig, session: Session, report: Report) -> None:
    """Write the table as JSON, Markdown and text, and attach the files to the run."""
    for suffix, data in (
        ("json", files.canonical_json(report.to_json())),
        ("md", report.to_markdown().encode()),
        ("txt", report.to_text().encode()),
    ):
        files.write_atomic(f"{config.output}.{suffix}", data)
        session.run.artifact(f"{config.output}.{suffix}")


def record_scores(
    config: EvaluateConfig,
    session: Session,
    report: Report,
    protocol: Mapping[str, Any] | None = None,
    outcomes: Mapping[str, Outcomes] | None = None,
) -> None:
    """Store the report and the outcomes under the evaluation's name, and renew the card of each state's model."""
    lake = session.lake.uri
    models = {state.name: resolve_model(state.model, lake) for state in config.states}
    contents = {name: model.content for name, model in models.items()}
    table = pa.concat_tables([one.table(name) for name, one in outcomes.items()]) if outcomes else None
    evaluations.write(lake, config.name, report.to_json(), contents, protocol=protocol, outcomes=table)
    for model in models.values():
        renew_card(lake, model.uri)


def record_variety(session: Session, report: Report, drawn: Mapping[str, Version]) -> None:
    """Record memorisation and diversity of each state as metrics, linked to its checkpoint and its images."""
    for state, version in drawn.items():
        metrics = {f"{state}/{name}": value for name, value in report.variety[state].metrics().items()}
        for origin in version.manifest.parent_refs if metrics else ():
            if origin.kind in ("checkpoint", "model"):
                session.run.measured(origin, metrics, datasets=[version])
