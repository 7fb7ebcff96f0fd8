"""Evaluate: measure per language how often judges find the requested concept in what each state draws."""

from __future__ import annotations

from altdiffusion.evaluation import table
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake
from jobs import evaluation_judges, evaluation_measures
from jobs.cards import finish
from jobs.harness import Job, leave, main
from jobs.session import Session, already_published
from pipelines.evaluate import EvaluateConfig, cases_of, looks, pipeline_steps, plan, survey


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
    report = evaluation_judges.judge(config, session, cases, drawn)
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


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
