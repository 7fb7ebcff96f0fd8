"""Scores of an evaluation, kept in the lake and shown on the cards of their models."""

from __future__ import annotations

from altdiffusion.evaluation.table import Report
from altdiffusion.generation.model import resolve_model
from altdiffusion.storage import evaluations
from altdiffusion.training.exports.export import renew_card
from jobs.session import Session
from pipelines.evaluate import EvaluateConfig


def record_scores(config: EvaluateConfig, session: Session, report: Report) -> None:
    """Store the report under the evaluation's name, and renew the card of each state's model."""
    lake = session.lake.uri
    models = {state.name: resolve_model(state.model, lake) for state in config.states}
    contents = {name: model.content for name, model in models.items()}
    evaluations.write(lake, config.name, report.to_json(), contents)
    for model in models.values():
        renew_card(lake, model.uri)
