"""Encode: images become latents, captions become token ids."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("encode", __doc__)

from jobs.harness import job_of_steps, leave, main
from pipelines.encode import EncodeJobConfig, note_autoencoder, pipeline_steps, plan, survey

JOB = job_of_steps(
    name="encode",
    summary=__doc__,
    config=EncodeJobConfig,
    plan=plan,
    survey=survey,
    steps=pipeline_steps,
    settle=note_autoencoder,
)

if __name__ == "__main__":
    leave(main(JOB))
