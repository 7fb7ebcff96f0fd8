"""The judging of what an evaluation has drawn, and whether the lake keeps its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from altdiffusion.config import semantic
from altdiffusion.evaluation.judging import Panel, judged
from altdiffusion.evaluation.outcomes import Outcomes, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import StateScore, score
from altdiffusion.evaluation.table import Report, SweepRow
from altdiffusion.evaluation.thresholds import require
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import read_document
from jobs.cards import record_scores, record_sweep, record_unjudged, write_changes, write_table
from jobs.session import Session
from pipelines.cases import Cases
from pipelines.evaluate import EvaluateConfig, all_points, cases_of, labelled_of, protocol, training_of
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


def judge(config: EvaluateConfig, session: Session, cases: Cases, drawn: Mapping[str, Version]) -> Report | None:
    """Have judges name the images of every set, keep what they find, and return the report; None without labels.

    Raises:
        AltDiffusionError: as `shared_warnings`.
    """
    lake, settings = session.lake, config.judge
    made = protocol(config, lake, cases)
    if config.labels is None or config.autoencoder is None:
        record_unjudged(config, session, made)
        record_sweep(config, session, {})
        return None
    labelled, training = labelled_of(config, config.labels, lake, cases), training_of(config, lake)
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
    states = {state.name: drawn[state.name] for state in config.states}
    warnings = shared_warnings(settings, config.labels, labelled, training)
    report, outcomes = judged(
        *(panel, states, cases.by_id, cases.images, config.autoencoder),
        *(training, settings.compared_at_most, warnings),
    )
    swept = {name: outcomes_in(panel, drawn[name], cases) for name in drawn if name not in states}
    scores = {name: score(name, one) for name, one in swept.items()}
    report = replace(report, sweep=sweep_rows(config, report, scores))
    write_table(config, session, report)
    write_changes(config, session, report)
    record_scores(config, session, report, made, {**outcomes, **swept})
    record_sweep(config, session, scores)
    print(report.to_text(), flush=True)
    return report


def sweep_rows(config: EvaluateConfig, report: Report, scores: Mapping[str, StateScore]) -> list[SweepRow]:
    """Return the points of the sweep, by setting and value."""
    known = {**{state.state: state for state in report.states}, **scores}
    rows = [
        SweepRow(setting=point.setting, value=point.value, score=replace(known[point.name], state=point.state))
        for point in all_points(config)
    ]
    return sorted(rows, key=lambda row: (row.setting, row.value))


def outcomes_in(panel: Panel, version: Version, cases: Cases) -> Outcomes:
    """Return what a panel finds in a set of images."""
    read = panel.read_version(version)
    return outcomes_of(cases.by_id, cases.images, read.ids, read.named)


def check_required(config: EvaluateConfig, lake: Lake, report: Report) -> None:
    """Check the thresholds, if there are any, and note in the kept report that they are met; it raises as `require`."""
    if config.require is not None:
        require(report, config.require)
        evaluations.extend(lake.uri, config.name, {MET: semantic(config.require)})
