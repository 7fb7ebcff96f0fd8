"""The two pipeline steps of generation: prompts file -> prompts, prompts -> generations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from altdiffusion.config import semantic
from altdiffusion.execution.pipeline_step import Output, PipelineStep
from altdiffusion.execution.units import Pool, Resources
from altdiffusion.generation.finished import Finished
from altdiffusion.generation.generate_work import Check, GenerateWork, generation_units
from altdiffusion.generation.model import Model, resolve_model
from altdiffusion.generation.prompt_checks import Detect
from altdiffusion.generation.prompts import PromptsWork, prompts_parents, prompts_units
from altdiffusion.generation.settings import GenerateConfig


class Detector(Protocol):
    """Makes, in a worker, what finds the language of texts; it is picklable."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the result, for the fingerprint of the prompts."""

    def __call__(self) -> Detect:
        """Load the identifier."""


class Checker(Protocol):
    """Makes, in a worker, what refuses images; it is picklable."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the result, for the fingerprint of the images."""

    def __call__(self) -> Check:
        """Load the models."""


def generation_steps(
    lake_uri: str,
    prompts: str,
    generations: str,
    generate: GenerateConfig,
    detector: Detector | None = None,
    checker: Checker | None = None,
    *,
    pool: Pool | None = None,
    resources: Resources | None = None,
) -> tuple[PipelineStep, ...]:
    """Return both steps.

    Args:
        prompts: name of the dataset of prompts.
        generations: name of the dataset of images.
        detector: finds the languages of rows without one; None labels them `und`.
        checker: refuses images after they are drawn; None refuses none.
        pool: the workers that draw.
        resources: what one of them needs.
    """
    pool, resources = pool or Pool(), resources or Resources()

    @functools.cache  # reading a model folder for its digest takes time, and the folder must not change in between
    def model(uri: str) -> Model:
        return resolve_model(generate.model, uri, generate.lora)

    settings = {"prompts": semantic(generate.prompts), **(detector.settings if detector is not None else {})}
    drawing = {"generate": semantic(generate), **(checker.settings if checker is not None else {})}
    return (
        PipelineStep(
            name="prompts",
            outputs=(Output(dataset=prompts, kind="prompts", settings=settings),),
            pool=Pool(min_size=1, max_size=1),
            resources=replace(Resources(), num_cpus=resources.num_cpus),
            noun="prompts",
            parents=lambda _: prompts_parents(generate.prompts),
            units=lambda _: prompts_units(generate.prompts),
            work=lambda _: PromptsWork(lake_uri, prompts, generate.prompts, detector),
        ),
        PipelineStep(
            name="generate",
            outputs=(Output(dataset=generations, kind="generations", settings=drawing),),
            pool=pool,
            resources=resources,
            noun="images",
            parents=lambda lake: [lake.version(prompts).ref, *model(lake.uri).refs],
            units=lambda lake: generation_units(lake.version(prompts), model(lake.uri), generate, pool.max_size),
            work=lambda lake: GenerateWork(
                lake_uri, generations, model(lake.uri), generate, Finished.of(lake.dataset(generations)), checker
            ),
            spills=True,
            when_empty="use dtype float32 or bfloat16, or look at the model's weights"
            if checker is None
            else "look at the rejects: if they are image_blocked, check the thresholds of image_check.filter",
        ),
    )
