"""Which job a config is for, where it was given to another one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

CONFIGS = {
    "curate": "pipelines.curate:CurateConfig",
    "encode": "pipelines.encode:EncodeJobConfig",
    "evaluate": "pipelines.evaluate:EvaluateConfig",
    "import": "pipelines.imports:ImportConfig",
    "generate": "pipelines.generate:GenerateJobConfig",
    "measure": "pipelines.measures:MeasureJobConfig",
    "parallel": "pipelines.parallel:ParallelConfig",
    "score": "pipelines.score:ScoreJobConfig",
    "train": "pipelines.train:TrainJobConfig",
}
"""The config class of each job, which is imported only to recognise a config."""


def config_class(job: str) -> Any:
    """Return the config class of a job."""
    module, _, name = CONFIGS[job].partition(":")
    return getattr(importlib.import_module(module), name)


def kind_of(tree: Mapping[str, Any], given_to: str) -> str | None:
    """Return the other job whose config this is: it has all keys that the job needs, and none that it does not know.

    Of several, it is the one with the fewest keys.
    """
    found = [job for job in CONFIGS if job != given_to and _fits(tree, config_class(job))]
    return min(found, key=lambda job: len(dataclasses.fields(config_class(job))), default=None)


def _fits(tree: Mapping[str, Any], cls: Any) -> bool:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    missing = dataclasses.MISSING
    needed = {n for n, f in fields.items() if f.default is missing and f.default_factory is missing}
    return needed <= tree.keys() <= fields.keys()
