"""Evaluate: measure per language how often judges find the requested concept in what each state draws."""

from __future__ import annotations

from altdiffusion.config import semantic
from altdiffusion.evaluation.judging import Panel, judged
from altdiffusion.evaluation.state_variety import Training
from altdiffusion.evaluation.thresholds import require
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.documents import read_document
from jobs import evaluation_measures
from jobs.cards import record_scores, record_variety, write_table
from jobs.harness import Job, leave, main
from jobs.session import Session, already_published
from pipelines.evaluate import (
    EvaluateConfig,
    cases_of,
    labelled_of,
    looks,
    pipeline_steps,
    plan,
    protocol,
    survey,
    training_of,
)
from pipelines.judge_inputs import judge_side, shared_warnings


def result(config: EvaluateConfig, lake: Lake) -> str | None:
    drawn = already_published(lake, [step for state in config.states for step in pipeline_steps(config, state)])
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in ("json", "md", "txt"))
    written &= evaluation_measures.done(config, lake)
    return f"{config.output}.md of {drawn}" if drawn and written and _is_kept(config, lake) else None


def _is_kept(config: EvaluateConfig, lake: Lake) -> bool:
    """Return whether the lake keeps the report of this protocol, and it meets what the config requires."""
    uri = evaluations.uri_of(lake.uri, config.name)
    if not files.exists(uri):
        return False
    report = read_document(uri).value
    met = report.get("met") == semantic(config.require) if config.require is not None else True
    return met and report.get("protocol") == protocol(config, lake, cases_of(config))


def run(config: EvaluateConfig, session: Session) -> None:
    """Draw the cases with every state, judge the images, and write the table."""
    for look in looks(config):  # before anything is drawn
        for line in look(session.lake):
            print(f"[evaluate] {line}", flush=True)
    cases = cases_of(config)
    drawn = {
        state.name: [session.complete(step) for step in pipeline_steps(config, state)][-1][-1]
        for state in config.states
    }
    lake = session.lake
    labelled, training = labelled_of(config, lake, cases), training_of(config, lake)
    for version in labelled.versions:
        session.run.input(version, context="judge")
    panel = Panel.train(
        lake.uri,
        labelled,
        cases.concepts,
        range(config.judge.seed, config.judge.seed + config.judge.seeds),
        steps=config.judge.steps,
        side=judge_side(config.judge, labelled, cases),
        device=config.judge.device,
    )
    report, outcomes = judged(
        panel,
        drawn,
        cases.by_id,
        cases.images,
        config.autoencoder,
        {name: Training(data=data, at_most=config.judge.compared_at_most) for name, data in training.items()},
        shared_warnings(config.judge, config.labels, labelled, training),
    )
    write_table(config, session, report)
    record_scores(config, session, report, protocol(config, session.lake, cases), outcomes)
    print(report.to_text(), flush=True)
    evaluation_measures.add(config, session)
    record_variety(session, report, drawn)
    if config.require is not None:
        require(report, config.require)
        evaluations.extend(lake.uri, config.name, {"met": semantic(config.require)})


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
