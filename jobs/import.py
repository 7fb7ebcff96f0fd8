"""Import: images of your own, or lists of links, become a dataset that all other jobs read."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("import", __doc__)

from jobs.harness import job_of_steps, leave, main
from pipelines.imports import ImportConfig, pipeline_steps, plan, survey

JOB = job_of_steps(name="import", summary=__doc__, config=ImportConfig, plan=plan, survey=survey, steps=pipeline_steps)

if __name__ == "__main__":
    leave(main(JOB))
