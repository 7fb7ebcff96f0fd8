"""Score: images get their embedding, aesthetics, NSFW and watermark scores."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("score", __doc__)

from jobs.harness import job_of_steps, leave, main
from pipelines.score import ScoreJobConfig, pipeline_steps, plan, survey

JOB = job_of_steps(name="score", summary=__doc__, config=ScoreJobConfig, plan=plan, survey=survey, steps=pipeline_steps)

if __name__ == "__main__":
    leave(main(JOB))
