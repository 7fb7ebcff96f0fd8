"""Parallel: texts and their translations become pairs of token ids for distillation."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("parallel", __doc__)

from jobs.harness import job_of_steps, leave, main
from pipelines.parallel import ParallelConfig, pipeline_steps, plan, survey

JOB = job_of_steps(
    name="parallel", summary=__doc__, config=ParallelConfig, plan=plan, survey=survey, steps=pipeline_steps
)

if __name__ == "__main__":
    leave(main(JOB))
