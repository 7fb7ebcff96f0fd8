"""Curate: links as published become downloaded, deduplicated pictures with captions in the chosen languages."""

from __future__ import annotations

from altdiffusion.curation.report.write import write_report
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.curate import CurateConfig, boundaries, plan, survey


def result(config: CurateConfig, lake: Lake) -> str | None:
    return already_published(lake, boundaries(config))


def run(config: CurateConfig, session: Session) -> None:
    for boundary in boundaries(config):
        images = session.boundary(boundary)
    page = files.join(images.uri, "report.html")
    session.run.artifact(write_report(session.lake, images, page, name=config.name, config=config.report))
    print(f"[report] {page}", flush=True)


JOB = Job(name="curate", config=CurateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
