"""Evaluate: measure per language how often judges find the requested concept in what each state draws."""

from __future__ import annotations

from collections.abc import Mapping

from altdiffusion.evaluation import table
from altdiffusion.evaluation.judging import Panel, judged
from altdiffusion.evaluation.outcomes import Outcomes, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import score
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake, Version
from jobs import evaluation_measures
from jobs.cards import finish, record_scores, record_sweep, record_unjudged, write_table
from jobs.harness import Job, leave, main
from jobs.session import Session, already_published
from pipelines.cases import Cases
from pipelines.evaluate import EvaluateConfig, cases_of, looks, pipeline_steps, plan, protocol, survey


def result(config: EvaluateConfig, lake: Lake) -> str | None:
    drawn = already_published(lake, [step for steps in pipeline_steps(config).values() for step in steps])
    suffixes = ("html",) if config.labels is None else ("json", "md", "txt", "html")
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in suffixes)
    written &= evaluation_measures.done(config, lake)
    kept = files.exists(evaluations.uri_of(lake.uri, config.name))
    return f"{config.output}.html of {drawn}" if drawn and written and kept else None


def run(config: EvaluateConfig, session: Session) -> None:
    """Draw the cases with every state, judge and measure the images, and write the tables and the page."""
    for look in looks(config):  # before anything is drawn
        for line in look(session.lake):
            print(f"[evaluate] {line}", flush=True)
    cases = cases_of(config)
    drawn = {
        name: [version for step in steps for version in session.complete(step)][-1]
        for name, steps in pipeline_steps(config).items()
    }
    report = judge_states(config, session, cases, drawn)
    evaluation_measures.add(config, session)
    finish(config, session)
    if config.require is not None and report is not None:
        table.require(
            report,
            min_mean=config.require.others_at_least,
            min_ratio=config.require.others_to_english_at_least,
            min_lowest_ratio=config.require.lowest_to_english_at_least,
            min_concepts=config.require.concepts_at_least,
        )


def judge_states(
    config: EvaluateConfig, session: Session, cases: Cases, drawn: Mapping[str, Version]
) -> table.Report | None:
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


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
