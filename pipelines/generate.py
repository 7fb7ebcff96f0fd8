"""Generation: a prompts file -> prompts -> generations, and a contact sheet of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch

from altdiffusion.config import operational, semantic
from altdiffusion.constraints import DATASET_NAME, Invalid
from altdiffusion.diffusion.hub import at_hand
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.finished import Finished
from altdiffusion.generation.generate_work import GenerateWork, describe_work, generation_units
from altdiffusion.generation.model import Model, check_sampling, ignored_parts, resolve_model
from altdiffusion.generation.prompts import PromptsWork, prompts_source, prompts_units, read_prompts
from altdiffusion.generation.settings import GenerateConfig, ModelConfig
from pipelines.common import JobConfig, Plan, Survey, Workers, look_at, make_pipeline_step


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetConfig:
    """A contact sheet: one row per language, one column per concept, for prompt ids <concept>-<language>."""

    file: str
    """Local path of the PNG."""
    fonts: str
    """Local folder of fonts that together cover the scripts of all languages."""
    cell: int = 96
    """Side of an image on the sheet, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateJobConfig(JobConfig):
    """`jobs/generate.py`."""

    name: str = operational("generate")
    """Name of the run in MLflow."""
    prompts: Annotated[str, DATASET_NAME] = "prompts"
    """Name of the dataset of prompts that the job makes from the file."""
    generations: Annotated[str, DATASET_NAME] = "generations"
    """Name of the dataset of images."""
    generate: GenerateConfig
    sheet: SheetConfig | None = operational(None)
    workers: Workers = operational(factory=Workers)

    def conflicts(self) -> Iterator[Invalid]:
        if self.prompts == self.generations:
            yield Invalid("generations", "is also the name of the prompts", "give the two datasets different names")

    @property
    def run_name(self) -> str:
        return self.name


def pipeline_steps(config: GenerateJobConfig) -> tuple[PipelineStep, ...]:
    """Return both pipeline steps: prompts file -> prompts, prompts -> generations."""
    return generation_pipeline_steps(config.lake, config.prompts, config.generations, config.generate, config.workers)


def generation_pipeline_steps(
    lake_uri: str, prompts: str, generations: str, generate: GenerateConfig, workers: Workers
) -> tuple[PipelineStep, ...]:
    """Return the same two steps for any job that has a set of images drawn.

    Args:
        prompts: name of the dataset of prompts.
        generations: name of the dataset of images.
    """

    @functools.cache  # reading a model folder for its digest takes time, and the folder must not change in between
    def model(uri: str) -> Model:
        return resolve_model(generate.model, uri)

    return (
        make_pipeline_step(
            name="prompts",
            output=prompts,
            settings={"prompts": semantic(generate.prompts)},
            workers=Workers(max=1, cpus=workers.cpus),
            noun="prompts",
            kind="prompts",
            parents=lambda _: [prompts_source(generate.prompts)],
            units=lambda _: prompts_units(generate.prompts),
            work=lambda _: PromptsWork(lake_uri, prompts, generate.prompts),
        ),
        make_pipeline_step(
            name="generate",
            output=generations,
            settings={"generate": semantic(generate)},
            workers=workers,
            noun="images",
            kind="generations",
            parents=lambda lake: [lake.version(prompts).ref, model(lake.uri).ref],
            units=lambda lake: generation_units(lake.version(prompts), model(lake.uri), generate, workers.max),
            work=lambda lake: GenerateWork(
                lake_uri, generations, model(lake.uri), generate, Finished.of(lake.dataset(generations))
            ),
            spills=True,
            when_empty="use dtype float32 or bfloat16, or look at the model's weights",
        ),
    )


def opened(config: ModelConfig, lake_uri: str, dtype: str) -> Model:
    """Return a model after opening each of its parts in a dtype, so that drawing will not fail there."""
    model = resolve_model(config, lake_uri)
    load_bundle(model.uri, dtype=getattr(torch, dtype))
    return model


def model_lines(generate: GenerateConfig, lake_uri: str) -> list[str]:
    """Return which model will draw and what it names that is not used, after every check of the model.

    A model that would have to be fetched from the hub is only named.

    Raises:
        AltDiffusionError: the job would stop at it.
    """
    folder = generate.model.folder
    if folder is not None and not at_hand(folder, lake_uri, "base"):
        return [f"draws with  {folder} (it is fetched and checked when the job starts)"]
    model = opened(generate.model, lake_uri, generate.dtype)
    check_sampling(model, generate.sampler, generate.steps)
    ignored = ignored_parts(model)
    return [
        f"draws with  {model.ref.short}",
        *([f"not used  {', '.join(ignored)}, named in the model's model_index.json"] if ignored else []),
    ]


def survey(config: GenerateJobConfig, remote: bool = False) -> Survey:
    """Return how many images are asked for and of which model, and whether prompts or model are missing."""
    return look_at(
        config.lake,
        remote,
        lambda _: look_at_prompts(config.generate, config.workers.max),
        lambda lake: model_lines(config.generate, lake.uri),
    )


def look_at_prompts(generate: GenerateConfig, workers: int) -> list[str]:
    """Return how many prompts there are, and how many images, units and batches they make."""
    prompts = read_prompts(generate.prompts)
    return [f"prompts  {prompts.num_rows:,}", describe_work(prompts, generate, workers)]


def plan(config: GenerateJobConfig) -> Plan:
    """Return what the job will do."""
    generate = config.generate
    model = generate.model.folder or f"newest export of run {generate.model.run}"
    return Plan(
        title=f"generate from {generate.prompts.file}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts={
            "model": model,
            "sampler": f"{generate.sampler}, {generate.steps} steps, guidance {generate.guidance_scale:g}",
            "batches": f"up to {generate.batch_rows:,} images of one size; units: up to {generate.rows_per_unit:,}",
            "sheet": config.sheet.file if config.sheet else "none",
        },
    )
