"""Score: images get their embedding, aesthetics, NSFW and watermark scores."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.score import ScoreJobConfig, pipeline_steps, plan, survey


def result(config: ScoreJobConfig, lake: Lake) -> str | None:
    return already_published(lake, pipeline_steps(config))


def run(config: ScoreJobConfig, session: Session) -> None:
    for pipeline_step in pipeline_steps(config):
        session.pipeline_step(pipeline_step)


JOB = Job(name="score", config=ScoreJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
