"""Encoding: images (and their scores) -> latents and token ids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from altdiffusion.config import added, operational, semantic
from altdiffusion.constraints import DATASET_NAME, Checked, Invalid, between, multiple_of
from altdiffusion.curation.config import BucketsConfig, EncodeConfig, FilterConfig
from altdiffusion.curation.encoding.buckets import bucket_sizes
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer
from altdiffusion.curation.encoding.encode_work import EncodeWork, Target, check_stored_size, plan_encode
from altdiffusion.curation.scoring.scored import check_scores
from altdiffusion.diffusion.autoencoder import Autoencoder, load_autoencoder, noted
from altdiffusion.diffusion.pinned_files import check_folder, folder_digest
from altdiffusion.execution.pipeline_step import Output, PipelineStep
from altdiffusion.execution.units import Unit
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import (
    JobConfig,
    Plan,
    Survey,
    Workers,
    device_conflicts,
    look_at,
    make_pass,
    not_looked_at,
    units_line,
)
from pipelines.estimates import WorkEstimateConfig, work_line

MIRRORED = "-mirrored"
"""Suffix that a dataset of mirrored images adds to the name of the unmirrored one."""
HELD_OUT = "-held-out"
"""Suffix that the dataset of the images that are held out adds to the name of the one to train on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlsoConfig(Checked):
    """Another dataset of latents that the same pass over the images makes."""

    latents: str
    """Name of the dataset."""
    resolution: Annotated[int, multiple_of(8)]
    """Replaces `encode.resolution`; all other settings of `encode` apply."""
    filter: FilterConfig = FilterConfig()
    """Replaces the job's filter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJobConfig(JobConfig):
    """`jobs/encode.py`."""

    name: str = operational("encode")
    """Name of the run in MLflow."""
    images: str = "images"
    """Dataset to read: `name`, or `name@digest` to pin a version."""
    scores: str | None = None
    """Dataset of these images' scores, from which the latents' `aesthetic` comes and which `filter` reads."""
    filter: FilterConfig = FilterConfig()
    latents: Annotated[str, DATASET_NAME] = "latents"
    """Name of the dataset that the job makes."""
    encode: EncodeConfig
    also: tuple[AlsoConfig, ...] = ()
    """Further resolutions from the same pass; each becomes a separate dataset."""
    buckets: BucketsConfig | None = None
    """Shapes of about one area in place of each resolution's square; each becomes a dataset <name>-<width>x<height>."""
    mirrored: bool = False
    """Whether to make <name>-mirrored of each dataset too, row by row from mirrored images (train.flip reads both)."""
    held_out: Annotated[float, between(0, 0.5, "0.01 holds one image in a hundred out")] = added(0.0)
    """Share of the images that go to <name>-held-out instead, for train.validation: an image's SHA-256 decides, so
    that it is on one side with all of its captions."""
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        names = [self.latents, *(also.latents for also in self.also)]
        if len(set(names)) != len(names):
            yield Invalid("also", "contains the same dataset twice", "give each resolution its own dataset")
        if self.scores is None and any(chosen.thresholds for chosen in self.filters):
            yield Invalid("scores", "is missing, but a filter has a threshold", "name the dataset that jobs.score made")
        sides = [self.encode.resolution, *(also.resolution for also in self.also)]
        if self.buckets is not None and any(side % self.buckets.step for side in sides):
            yield Invalid(
                "buckets.step",
                "does not divide every resolution",
                "choose a smaller step, such as 8, or other resolutions",
            )
        yield from device_conflicts(self, self.workers, {"encode.device": self.encode.device})

    @property
    def run_name(self) -> str:
        return self.name

    @property
    def filters(self) -> tuple[FilterConfig, ...]:
        return (self.filter, *(also.filter for also in self.also))


def pipeline_steps(config: EncodeJobConfig) -> tuple[PipelineStep, ...]:
    """Return the one pipeline step, with an output per dataset.

    The scores, the autoencoder and the tokenizer are parents: different ones make a different version.
    """
    wanted = list(_wanted(config))
    targets = [target for target, _ in wanted]

    @functools.cache
    def pinned() -> EncodeConfig:
        """Return the settings with both models pinned, so that every worker has the ones that the plan names."""
        encode = config.encode
        return dataclasses.replace(
            encode,
            vae_digest=encode.vae_digest or folder_digest(encode.vae),
            tokenizer_digest=encode.tokenizer_digest or folder_digest(encode.tokenizer),
        )

    def parents(lake: Lake) -> Sequence[Ref]:
        encode = pinned()
        folders = {"vae": (encode.vae, encode.vae_digest), "tokenizer": (encode.tokenizer, encode.tokenizer_digest)}
        models = [Ref("model", model_name(uri, part), digest or "") for part, (uri, digest) in folders.items()]
        scores = [] if config.scores is None else [lake.version(config.scores).ref]
        return [lake.version(config.images).ref, *scores, *models]

    def units(lake: Lake) -> Sequence[Unit]:
        images, scores = lake.version(config.images), config.scores
        for target in targets:
            check_stored_size(lake, images, min(target.crop_size))
        scored = None if scores is None else lake.version(scores)
        if scored is not None:
            check_scores(scored, images, config.filters)
        models = [str(ref) for ref in parents(lake) if ref.kind == "model"]
        return plan_encode(images, config.encode.rows_per_unit, *models, scores=scored)

    return (
        make_pass(
            name="encode",
            outputs=[Output(dataset=target.dataset, kind="latents", settings=settings) for target, settings in wanted],
            workers=config.workers,
            noun="images",
            parents=parents,
            units=units,
            work=lambda _: EncodeWork(lake=config.lake, targets=targets, config=pinned()),
        ),
    )


def _wanted(config: EncodeJobConfig) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Yield each dataset that is made, with the settings that its fingerprint covers."""
    resolutions = [(config.latents, config.encode.resolution, config.filter)]
    resolutions += [(also.latents, also.resolution, also.filter) for also in config.also]
    for name, resolution, chosen in resolutions:
        encode = semantic(dataclasses.replace(config.encode, resolution=resolution))
        common = {"encode": encode} | ({"filter": semantic(chosen)} if config.scores is not None else {})
        plain = Target(dataset=name, resolution=resolution, filter=chosen, held_out=config.held_out)
        split = {"held_out": config.held_out} if config.held_out else {}
        for target, shape in _shapes(config, plain):
            yield target, common | shape | split
            if config.mirrored:
                other = dataclasses.replace(target, dataset=f"{target.dataset}{MIRRORED}", mirrored=True)
                yield other, common | shape | split | {"mirrored": True}
            if config.held_out:
                other = dataclasses.replace(target, dataset=f"{target.dataset}{HELD_OUT}", takes_held_out=True)
                yield other, common | shape | split | {"takes_held_out": True}


def _shapes(config: EncodeJobConfig, square: Target) -> Iterator[tuple[Target, dict[str, Any]]]:
    if config.buckets is None:
        yield square, {}
        return
    sizes = bucket_sizes(square.resolution, config.buckets.step, config.buckets.max_aspect)
    for width, height in sizes:
        name = f"{square.dataset}-{width}x{height}"
        target = dataclasses.replace(square, dataset=name, size=(width, height), buckets=sizes)
        yield target, {"bucket": [width, height], "buckets": semantic(config.buckets)}


def survey(config: EncodeJobConfig, remote: bool = False) -> Survey:
    """Return how much there is to do, and whether images, scores, autoencoder or tokenizer are missing."""

    encode = config.encode

    def vae_there(_: Lake) -> list[str]:
        if remote or files.is_local(encode.vae):
            load_autoencoder(check_folder(encode.vae, encode.vae_digest))
        return not_looked_at([encode.vae], remote)

    def tokenizer_there(_: Lake) -> list[str]:
        if remote or files.is_local(encode.tokenizer):
            open_tokenizer(check_folder(encode.tokenizer, encode.tokenizer_digest), encode.tokenizer)
        return not_looked_at([encode.tokenizer], remote)

    def units(lake: Lake) -> list[str]:
        return units_line(lake, pipeline_steps(config)[0])

    more = work_line(config.estimate, config.workers.max)
    return look_at(config.lake, remote, units, vae_there, tokenizer_there, more=more)


def note_autoencoder(config: EncodeJobConfig, lake: Lake) -> None:
    """Record the latents' autoencoder in the lake, unless that was done when they were made.

    Runs compare it with the autoencoder of their base (training.run.fit).
    """
    encode = config.encode
    if files.is_local(encode.vae) and files.exists(encode.vae):
        digest = folder_digest(encode.vae)
        if noted(lake.uri, digest) is None:
            Autoencoder.of(load_autoencoder(encode.vae)).note(lake.uri, digest)


def model_name(uri: str, part: str) -> str:
    """Return a model folder's name in lineage, with its parent's name if it is named only `vae` or `tokenizer`."""
    path = PurePosixPath(uri.rstrip("/"))
    return f"{path.parent.name}/{part}" if path.name == part else path.name


def plan(config: EncodeJobConfig) -> Plan:
    """Return what the job will do."""
    encode = config.encode
    sides = [encode.resolution, *(also.resolution for also in config.also)]
    shape = "square" if config.buckets is None else "bucket"
    facts = {
        "resolution": f"{' and '.join(map(str, sides))} px, keyed random {shape} crop",
        "autoencoder": f"{encode.vae} ({encode.dtype}, {encode.latent})",
        "token ids": f"{encode.max_length} per caption, {encode.tokenizer}",
    }
    if config.held_out:
        facts["held out"] = f"{config.held_out:.2%} of the images, in <name>{HELD_OUT}"
    if config.scores is not None:
        thresholds = [
            ", ".join(f"{name} {'>' if name.startswith('aesthetic') else '<'} {value:g}" for name, value in pairs)
            for pairs in (chosen.thresholds.items() for chosen in config.filters)
        ]
        facts["filter"] = f"{'; '.join(part or 'none' for part in thresholds)} (dataset {config.scores})"
    return Plan(
        title=f"encode dataset {config.images}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts=facts,
    )
