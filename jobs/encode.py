"""Encode: images become latents, captions become token ids."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.encode import EncodeJobConfig, note_autoencoder, pipeline_steps, plan, survey


def result(config: EncodeJobConfig, lake: Lake) -> str | None:
    made = already_published(lake, pipeline_steps(config))
    if made is not None:
        note_autoencoder(config, lake)
    return made


def run(config: EncodeJobConfig, session: Session) -> None:
    for pipeline_step in pipeline_steps(config):
        session.pipeline_step(pipeline_step)


JOB = Job(name="encode", config=EncodeJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
