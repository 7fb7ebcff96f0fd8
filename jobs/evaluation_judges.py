"""What the judges of an evaluation find in the images of its states and of its sweep, kept in the lake."""

from __future__ import annotations

from collections.abc import Mapping

from altdiffusion.evaluation.judging import Panel, judged
from altdiffusion.evaluation.outcomes import Outcomes, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import score
from altdiffusion.evaluation.table import Report
from altdiffusion.storage.dataset import Version
from jobs.cards import record_scores, record_sweep, record_unjudged, write_table
from jobs.session import Session
from pipelines.cases import Cases
from pipelines.evaluate import EvaluateConfig, protocol


def judge(config: EvaluateConfig, session: Session, cases: Cases, drawn: Mapping[str, Version]) -> Report | None:
    """Have judges name the images of every set, keep what they find, and return the report; None without labels."""
    made = protocol(config, session.lake, cases)
    if config.labels is None or config.autoencoder is None:
        record_unjudged(config, session, made)
        record_sweep(config, session, {})
        return None
    images = session.lake.version(config.images)
    session.run.input(images, context="judge")
    seeds = range(config.judge.seed, config.judge.seed + config.judge.seeds)
    panel = Panel.train(images, config.labels, seeds, config.judge.steps)
    states = {state.name: drawn[state.name] for state in config.states}
    report, outcomes = judged(panel, states, cases.by_id, cases.images, config.autoencoder)
    swept = {name: outcomes_in(panel, drawn[name], cases) for name in drawn if name not in states}
    write_table(config, session, report)
    record_scores(config, session, report, made, {**outcomes, **swept})
    record_sweep(config, session, {name: score(name, one) for name, one in swept.items()})
    print(report.to_text(), flush=True)
    return report


def outcomes_in(panel: Panel, version: Version, cases: Cases) -> Outcomes:
    """Return what a panel finds in a set of images."""
    return outcomes_of(cases.by_id, cases.images, *panel.name_version(version))
