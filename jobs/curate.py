"""Curate: links as published become downloaded, deduplicated pictures with captions in the chosen languages."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.curate import CurateConfig, boundaries, plan


def result(config: CurateConfig, lake: Lake) -> str | None:
    return already_published(lake, boundaries(config))


def run(config: CurateConfig, session: Session) -> None:
    for boundary in boundaries(config):
        session.boundary(boundary)


JOB = Job(name="curate", config=CurateConfig, plan=plan, result=result, run=run)

if __name__ == "__main__":
    leave(main(JOB))
