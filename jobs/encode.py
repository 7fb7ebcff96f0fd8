"""Encode: pictures become latents, captions become token ids."""

from __future__ import annotations

from altdiffusion.storage.dataset import Lake
from jobs.harness import Job, Session, already_published, leave, main
from pipelines.encode import EncodeJobConfig, boundaries, note_autoencoder, plan, survey


def result(config: EncodeJobConfig, lake: Lake) -> str | None:
    made = already_published(lake, boundaries(config))
    if made is not None:
        note_autoencoder(config, lake)
    return made


def run(config: EncodeJobConfig, session: Session) -> None:
    for boundary in boundaries(config):
        session.boundary(boundary)


JOB = Job(name="encode", config=EncodeJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
