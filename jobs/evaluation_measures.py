"""What an evaluation measures besides, if its config has a section `measures`."""

from __future__ import annotations

from altdiffusion.storage import evaluations
from altdiffusion.storage.dataset import Lake
from jobs import measure
from jobs.session import Session
from pipelines.evaluate import EvaluateConfig, measure_config


def done(config: EvaluateConfig, lake: Lake) -> bool:
    """Return whether nothing is left to measure."""
    measured = measure_config(config)
    return measured is None or measure.result(measured, lake) is not None


def add(config: EvaluateConfig, session: Session) -> None:
    """Measure what was drawn, and add it to the evaluation's report in the lake, as `measures`."""
    measured = measure_config(config)
    if measured is not None:
        evaluations.extend(session.lake.uri, config.name, {"measures": measure.measure_states(measured, session)})
