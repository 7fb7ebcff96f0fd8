"""Curate: published links become downloaded, deduplicated images with captions in the chosen languages."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("curate", __doc__)

from altdiffusion.curation.report.write_report import write_report
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from jobs.harness import job_of_steps, leave, main
from jobs.session import Session
from pipelines.curate import CurateConfig, pipeline_steps, plan, survey


def report(config: CurateConfig, session: Session, images: Version) -> None:
    """Write report.html next to the images and attach it to the run."""
    page = files.join(images.uri, "report.html")
    session.run.artifact(write_report(session.lake, images, page, name=config.name, config=config.report))
    print(f"[report] {page}", flush=True)


JOB = job_of_steps(
    name="curate",
    summary=__doc__,
    config=CurateConfig,
    plan=plan,
    survey=survey,
    steps=pipeline_steps,
    finish=report,
)

if __name__ == "__main__":
    leave(main(JOB))
