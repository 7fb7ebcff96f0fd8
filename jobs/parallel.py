"""Parallel: texts and their translations become pairs of token ids for distillation."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.parallel import ParallelConfig, boundaries, plan, survey


def result(config: ParallelConfig, lake: Lake) -> str | None:
    return already_published(lake, boundaries(config))


def run(config: ParallelConfig, session: Session) -> None:
    for boundary in boundaries(config):
        session.boundary(boundary)


JOB = Job(name="parallel", config=ParallelConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
