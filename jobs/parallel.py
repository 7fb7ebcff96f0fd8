"""Parallel: texts and their translations become pairs of token ids for distillation."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.parallel import ParallelConfig, pipeline_steps, plan, survey


def result(config: ParallelConfig, lake: Lake) -> str | None:
    return already_published(lake, pipeline_steps(config))


def run(config: ParallelConfig, session: Session) -> None:
    for pipeline_step in pipeline_steps(config):
        session.pipeline_step(pipeline_step)


JOB = Job(name="parallel", config=ParallelConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
