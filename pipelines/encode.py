"""Encoding: images -> latents and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from altdiffusion.config import operational, semantic
from altdiffusion.curation.assets import folder_digest
from altdiffusion.curation.config import EncodeConfig
from altdiffusion.curation.encode import EncodeWork, plan_encode
from altdiffusion.execution.boundary import Boundary
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Workers, make_boundary


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJobConfig(JobConfig):
    """`jobs/encode.py`."""

    name: str = operational("encode")
    """Name of the run in MLflow."""
    images: str = "images"
    """Dataset to read: `name`, or `name@digest` to pin a version."""
    latents: str = "latents"
    """Name of the dataset it makes; one for each resolution."""
    encode: EncodeConfig
    workers: Workers = operational(factory=Workers)

    @property
    def run_name(self) -> str:
        return self.name


def boundaries(config: EncodeJobConfig) -> tuple[Boundary, ...]:
    """One boundary. The autoencoder and the tokenizer are parents: other weights make another version."""

    def parents(lake: Lake) -> Sequence[Ref]:
        folders = {"vae": config.encode.vae, "tokenizer": config.encode.tokenizer}
        models = [Ref("model", model_name(uri, part), folder_digest(uri)) for part, uri in folders.items()]
        return [lake.version(config.images).ref, *models]

    return (
        make_boundary(
            name="encode",
            output=config.latents,
            settings={"encode": semantic(config.encode)},
            workers=config.workers,
            noun="images",
            kind="latents",
            parents=parents,
            units=lambda lake: plan_encode(
                lake.version(config.images), config.encode.rows_per_unit, *(str(ref) for ref in parents(lake)[1:])
            ),
            work=lambda _: EncodeWork(lake=config.lake, dataset=config.latents, config=config.encode),
        ),
    )


def model_name(uri: str, part: str) -> str:
    """What a model folder is called in lineage: its own name, or its parent's if it is only `vae` or `tokenizer`."""
    path = PurePosixPath(uri.rstrip("/"))
    return f"{path.parent.name}/{part}" if path.name == part else path.name


def plan(config: EncodeJobConfig) -> Plan:
    """What the job will do."""
    encode = config.encode
    return Plan(
        title=f"encode dataset {config.images}",
        steps=tuple(boundary.describe() for boundary in boundaries(config)),
        facts={
            "resolution": f"{encode.resolution} px, keyed random square crop",
            "autoencoder": f"{encode.vae} ({encode.dtype}, {encode.latent})",
            "token ids": f"{encode.max_length} per caption, {encode.tokenizer}",
        },
    )
