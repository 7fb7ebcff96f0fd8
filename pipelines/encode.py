"""Encoding: images (and their scores) -> latents and token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from altdiffusion.config import fingerprint, operational, semantic
from altdiffusion.curation.assets import folder_digest
from altdiffusion.curation.config import EncodeConfig, FilterConfig
from altdiffusion.curation.encoding.encode import EncodeWork, Target, check_stored_size, plan_encode
from altdiffusion.curation.scoring.scored import check_scores
from altdiffusion.execution.boundary import Boundary
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import Unit
from pipelines.common import JobConfig, Plan, Workers, make_boundary


@dataclass(frozen=True, kw_only=True, slots=True)
class AlsoConfig:
    """A further dataset of latents that the same pass over the pictures makes."""

    latents: str
    """Its name."""
    resolution: int
    """In place of `encode.resolution`; all else is as there."""
    filter: FilterConfig = FilterConfig()
    """In place of the job's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJobConfig(JobConfig):
    """`jobs/encode.py`."""

    name: str = operational("encode")
    """Name of the run in MLflow."""
    images: str = "images"
    """Dataset to read: `name`, or `name@digest` to pin a version."""
    scores: str | None = None
    """Dataset of these images' scores: the latents' `aesthetic` comes from it, and `filter` reads it."""
    filter: FilterConfig = FilterConfig()
    latents: str = "latents"
    """Name of the dataset it makes."""
    encode: EncodeConfig
    also: tuple[AlsoConfig, ...] = ()
    """Further resolutions from the same pass, each a dataset of its own."""
    workers: Workers = operational(factory=Workers)

    def __post_init__(self) -> None:
        names = [self.latents, *(also.latents for also in self.also)]
        if len(set(names)) != len(names):
            raise ValueError("also: names a dataset twice; give each resolution a dataset of its own")
        if self.scores is None and any(chosen.thresholds for chosen in self.filters):
            raise ValueError("scores: a filter has a threshold; name the dataset that jobs.score made")
        if any(also.resolution < 8 or also.resolution % 8 for also in self.also):
            raise ValueError("also: holds a resolution that is not a multiple of 8; give e.g. 256")

    @property
    def run_name(self) -> str:
        return self.name

    @property
    def filters(self) -> tuple[FilterConfig, ...]:
        return (self.filter, *(also.filter for also in self.also))


def boundaries(config: EncodeJobConfig) -> tuple[Boundary, ...]:
    """One boundary a dataset; the first makes what the others then only publish.

    The scores, the autoencoder and the tokenizer are parents: other ones make another version.
    """
    wanted = [(config.latents, config.encode, config.filter)]
    for also in config.also:
        wanted.append((also.latents, dataclasses.replace(config.encode, resolution=also.resolution), also.filter))
    settings = [
        {"encode": semantic(encode)} | ({"filter": semantic(chosen)} if config.scores is not None else {})
        for _, encode, chosen in wanted
    ]
    targets = [
        Target(dataset=name, fingerprint=fingerprint(setting), resolution=encode.resolution, filter=chosen)
        for (name, encode, chosen), setting in zip(wanted, settings, strict=True)
    ]

    def parents(lake: Lake) -> Sequence[Ref]:
        encode = config.encode
        folders = {"vae": (encode.vae, encode.vae_digest), "tokenizer": (encode.tokenizer, encode.tokenizer_digest)}
        models = [
            Ref("model", model_name(uri, part), pinned or folder_digest(uri)) for part, (uri, pinned) in folders.items()
        ]
        scores = [] if config.scores is None else [lake.version(config.scores).ref]
        return [lake.version(config.images).ref, *scores, *models]

    def units(lake: Lake) -> Sequence[Unit]:
        images, scores = lake.version(config.images), config.scores
        for target in targets:
            check_stored_size(lake, images, target.resolution)
        scored = None if scores is None else lake.version(scores)
        if scored is not None:
            check_scores(scored, images, config.filters)
        models = [str(ref) for ref in parents(lake) if ref.kind == "model"]
        return plan_encode(images, config.encode.rows_per_unit, *models, scores=scored)

    return tuple(
        make_boundary(
            name="encode",
            output=target.dataset,
            settings=settings[number],
            workers=config.workers,
            noun="images",
            kind="latents",
            parents=parents,
            units=units,
            work=lambda _, number=number: EncodeWork(lake=config.lake, targets=targets[number:], config=config.encode),
        )
        for number, target in enumerate(targets)
    )


def model_name(uri: str, part: str) -> str:
    """What a model folder is called in lineage: its own name, or its parent's if it is only `vae` or `tokenizer`."""
    path = PurePosixPath(uri.rstrip("/"))
    return f"{path.parent.name}/{part}" if path.name == part else path.name


def plan(config: EncodeJobConfig) -> Plan:
    """What the job will do."""
    encode = config.encode
    sides = [encode.resolution, *(also.resolution for also in config.also)]
    facts = {
        "resolution": f"{' and '.join(map(str, sides))} px, keyed random square crop",
        "autoencoder": f"{encode.vae} ({encode.dtype}, {encode.latent})",
        "token ids": f"{encode.max_length} per caption, {encode.tokenizer}",
    }
    if config.scores is not None:
        told = [
            ", ".join(f"{name} {'>' if name.startswith('aesthetic') else '<'} {value:g}" for name, value in pairs)
            for pairs in (chosen.thresholds.items() for chosen in config.filters)
        ]
        facts["filter"] = f"{'; '.join(part or 'none' for part in told)} (dataset {config.scores})"
    return Plan(
        title=f"encode dataset {config.images}",
        steps=tuple(boundary.describe() for boundary in boundaries(config)),
        facts=facts,
    )
