"""Evaluate: measure per language how often judges find the requested concept in what each state draws."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("evaluate", __doc__)

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from jobs import evaluation_measures
from jobs.cards import finish, record_variety
from jobs.harness import Job, leave, main
from jobs.judging import check_required, is_kept, judge
from jobs.session import Session, already_published
from pipelines.evaluate import EvaluateConfig, cases_of, looks, pipeline_steps, plan, survey


def result(config: EvaluateConfig, lake: Lake) -> str | None:
    drawn = already_published(lake, [step for steps in pipeline_steps(config).values() for step in steps])
    suffixes = ("html",) if config.labels is None else ("json", "md", "txt", "html")
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in suffixes)
    written &= evaluation_measures.done(config, lake)
    return f"{config.output}.html of {drawn}" if drawn and written and is_kept(config, lake) else None


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
    report = judge(config, session, cases, drawn)
    evaluation_measures.add(config, session)
    if report is not None:
        record_variety(session, report, drawn)
    finish(config, session)
    if report is not None:
        check_required(config, session.lake, report)


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
