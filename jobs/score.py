"""Score: pictures get their embedding, aesthetics, NSFW and watermark scores."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.score import ScoreJobConfig, boundaries, plan, survey


def result(config: ScoreJobConfig, lake: Lake) -> str | None:
    return already_published(lake, boundaries(config))


def run(config: ScoreJobConfig, session: Session) -> None:
    for boundary in boundaries(config):
        session.boundary(boundary)


JOB = Job(name="score", config=ScoreJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
