"""Evaluate: measure per language how often judges find the requested concept in what each state draws."""

from __future__ import annotations

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from jobs import evaluation_measures
from jobs.cards import record_scores, record_variety, write_table
from jobs.harness import Job, leave, main
from jobs.judging import check_required, is_kept, judge
from jobs.session import Session, already_published
from pipelines.evaluate import EvaluateConfig, cases_of, looks, pipeline_steps, plan, protocol, survey


def result(config: EvaluateConfig, lake: Lake) -> str | None:
    drawn = already_published(lake, [step for state in config.states for step in pipeline_steps(config, state)])
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in ("json", "md", "txt"))
    written &= evaluation_measures.done(config, lake)
    return f"{config.output}.md of {drawn}" if drawn and written and is_kept(config, lake) else None


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
    report, outcomes = judge(config, session, cases, drawn)
    write_table(config, session, report)
    record_scores(config, session, report, protocol(config, session.lake, cases), outcomes)
    print(report.to_text(), flush=True)
    evaluation_measures.add(config, session)
    record_variety(session, report, drawn)
    check_required(config, session.lake, report)


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
