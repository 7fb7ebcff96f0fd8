"""Generate: a prompts file becomes images and a `generations` dataset, in an autoscaled pool of workers."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("generate", __doc__)

from altdiffusion.generation.cautions import warnings_of
from altdiffusion.generation.sheet import write_sheet
from altdiffusion.storage.dataset import Version
from jobs.contact_sheets import log_sheets
from jobs.harness import job_of_steps, leave, main
from jobs.session import Session
from pipelines.generate import GenerateJobConfig, check, pipeline_steps, plan, survey, write_files


def show(config: GenerateJobConfig, session: Session, generations: Version) -> None:
    """Print what was cut off or refused; draw the contact sheet, where the config asks for one, and log it."""
    for line in warnings_of(generations):
        print(f"[generate] warning: {line}", flush=True)
    if config.sheet is None:
        return
    write_sheet(generations, config.sheet.file, config.sheet.fonts, cell=config.sheet.cell)
    log_sheets(session, generations, config.sheet.fonts, title=config.name, step=0)
    print(f"[generate] contact sheet {config.sheet.file}", flush=True)


JOB = job_of_steps(
    name="generate",
    summary=__doc__,
    config=GenerateJobConfig,
    plan=plan,
    survey=survey,
    steps=pipeline_steps,
    check=check,
    finish=show,
    settle=write_files,
)

if __name__ == "__main__":
    leave(main(JOB))
