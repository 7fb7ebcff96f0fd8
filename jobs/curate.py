"""Curate: links as published become downloaded, deduplicated images with captions in the chosen languages."""

from __future__ import annotations

from altdiffusion.curation.report.write_report import write_report
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.curate import CurateConfig, pipeline_steps, plan, survey


def result(config: CurateConfig, lake: Lake) -> str | None:
    return already_published(lake, pipeline_steps(config))


def run(config: CurateConfig, session: Session) -> None:
    for pipeline_step in pipeline_steps(config):
        images = session.pipeline_step(pipeline_step)
    page = files.join(images.uri, "report.html")
    session.run.artifact(write_report(session.lake, images, page, name=config.name, config=config.report))
    print(f"[report] {page}", flush=True)


JOB = Job(name="curate", config=CurateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
