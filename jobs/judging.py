"""The judging of what an evaluation has drawn, and whether the lake keeps its result."""

from __future__ import annotations

from collections.abc import Mapping

from altdiffusion.config import semantic
from altdiffusion.evaluation.judging import Panel, judged
from altdiffusion.evaluation.outcomes import Outcomes
from altdiffusion.evaluation.table import Report
from altdiffusion.evaluation.thresholds import require
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import read_document
from jobs.session import Session
from pipelines.cases import Cases
from pipelines.evaluate import EvaluateConfig, cases_of, labelled_of, protocol, training_of
from pipelines.judge_inputs import judge_side, shared_warnings

MET = "met"
"""Key of a report: the thresholds that it has met."""


def is_kept(config: EvaluateConfig, lake: Lake) -> bool:
    """Return whether the lake keeps the report of this protocol, and it has met what the config requires."""
    uri = evaluations.uri_of(lake.uri, config.name)
    if not files.exists(uri):
        return False
    report = read_document(uri).value
    met = config.require is None or report.get(MET) == semantic(config.require)
    return met and report.get("protocol") == protocol(config, lake, cases_of(config))


def judge(
    config: EvaluateConfig, session: Session, cases: Cases, drawn: Mapping[str, Version]
) -> tuple[Report, dict[str, Outcomes]]:
    """Return the report on what each state has drawn, and the outcomes of each.

    Raises:
        AltDiffusionError: as `shared_warnings`.
    """
    lake, settings = session.lake, config.judge
    labelled, training = labelled_of(config, lake, cases), training_of(config, lake)
    for version in labelled.versions:
        session.run.input(version, context="judge")
    panel = Panel.train(
        lake.uri,
        labelled,
        cases.concepts,
        range(settings.seed, settings.seed + settings.seeds),
        steps=settings.steps,
        side=judge_side(settings, labelled, cases),
        device=settings.device,
    )
    return judged(
        panel,
        drawn,
        cases.by_id,
        cases.images,
        config.autoencoder,
        training,
        settings.compared_at_most,
        shared_warnings(settings, config.labels, labelled, training),
    )


def check_required(config: EvaluateConfig, lake: Lake, report: Report) -> None:
    """Check the thresholds, if there are any, and note in the kept report that they are met; it raises as `require`."""
    if config.require is not None:
        require(report, config.require)
        evaluations.extend(lake.uri, config.name, {MET: semantic(config.require)})
