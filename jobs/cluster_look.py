"""The look of a dry run at the cluster whose address a config gives: it has to have the GPUs that workers reserve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import cluster
from altdiffusion.execution.capacity import fits_somewhere
from altdiffusion.execution.units import Resources
from pipelines.common import JobConfig


def gpu_sections(config: Any, prefix: str = "") -> Iterator[tuple[str, Resources]]:
    """Yield the key and the resources of each section of workers that reserve a GPU."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            continue
        gpus = getattr(value, "gpus", 0)
        if gpus:
            yield key, Resources(num_cpus=getattr(value, "cpus", 0.0), num_gpus=gpus)
        yield from gpu_sections(value, f"{key}.")


def cluster_problems(config: JobConfig) -> list[AltDiffusionError]:
    """Return what is wrong with the cluster; nothing where the config names none, since then none is joined."""
    execution = config.execution
    wanted = dict(gpu_sections(config))
    if execution.backend != "ray" or execution.address is None or not wanted:
        return []
    try:
        cluster.connect(execution.address)
    except AltDiffusionError as error:
        return [error]
    return [
        AltDiffusionError(
            f"{key}: workers with {resources.num_gpus:g} GPU and {resources.num_cpus:g} CPU",
            f"fit on no node of the cluster {execution.address}",
            f"start a node with a GPU, name another execution.address, or set {key}.gpus: 0 and device: cpu; if the "
            "cluster adds such nodes without announcing them, leave out --dry-run",
        )
        for key, resources in wanted.items()
        if not fits_somewhere(resources)
    ]
