"""Generate: a prompts file becomes images and a `generations` dataset, in an autoscaled pool of workers."""

from __future__ import annotations

from altdiffusion.generation.sheet import write_sheet
from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.generate import GenerateJobConfig, pipeline_steps, plan, survey


def result(config: GenerateJobConfig, lake: Lake) -> str | None:
    return already_published(lake, pipeline_steps(config))


def run(config: GenerateJobConfig, session: Session) -> None:
    for pipeline_step in pipeline_steps(config):
        version = session.pipeline_step(pipeline_step)
    if config.sheet is not None:
        write_sheet(version, config.sheet.file, config.sheet.fonts, cell=config.sheet.cell)
        session.run.image("samples/_all", config.sheet.file, step=0)
        print(f"[generate] contact sheet {config.sheet.file}", flush=True)


JOB = Job(name="generate", config=GenerateJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
