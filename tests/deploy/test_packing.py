"""The workers of the published recipe's jobs fill the nodes of every cluster file, by Ray's own numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.config import load_config
from altdiffusion.execution.capacity import fits, room
from altdiffusion.execution.units import Resources
from altdiffusion.training.config.workers import WorkersConfig
from pipelines.common import Workers
from pipelines.kinds import config_class
from tests.deploy.clusters import KINDS, ROOT, launcher_file, node_types

CONFIGS = sorted((ROOT / "jobs/configs/m18").glob("*.yaml"))
STAGES = ("alignment", "distillation", "guidance", "quality")
MEMORY_GIB = {"c6i.16xlarge": 128, "p4d.24xlarge": 1152, "n2-custom-64-131072": 128, "a2-highgpu-8g": 680}
WASTE_AT_MOST = 0.1


def pools(config: Any, at: str = "") -> Iterator[tuple[str, int, Resources]]:
    """Yield the key, the largest number and the needs of each kind of worker of a config."""
    if isinstance(config, Workers):
        yield at, config.max, config.resources
    elif isinstance(config, WorkersConfig):
        yield at, config.count, Resources(num_cpus=config.cpus, num_gpus=config.gpus, custom=config.custom)
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from pools(getattr(config, field.name), f"{at}.{field.name}".lstrip("."))


def of_file(path: Path) -> list[tuple[str, int, Resources]]:
    job = "train" if path.stem in STAGES else path.stem.partition("-")[0]
    found = list(pools(load_config(config_class(job), str(path), [])))
    assert found, path
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_workers_fill_the_nodes_that_they_run_on(path: Path, kind: str) -> None:
    types = node_types(kind)
    for key, count, needs in of_file(path):
        on = {name: given for name, given in types.items() if fits(needs, [given.resources])}
        assert list(on) == ["a100" if needs.num_gpus else "curation"], (key, on)
        ((name, given),) = on.items()
        full = room(needs, [given.resources])
        scarce = "GPU" if needs.num_gpus else "CPU"
        used = full * (needs.num_gpus or needs.num_cpus)
        assert 1 - used / given.resources[scarce] <= WASTE_AT_MOST, (
            f"{key}: {full} workers use {used:g} of {given.resources[scarce]:g} {scarce}"
        )
        if kind != "slurm":  # there a user asks for as many nodes as are free
            assert count <= full * given.count, f"{key}: {count} workers do not fit on {name}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_64_workers_of_training_take_the_8_nodes_whole(kind: str) -> None:
    needs = Resources(num_cpus=10, num_gpus=1, custom={"training": 1})
    a100 = node_types(kind)["a100"]
    assert a100.count == 8 and room(needs, [a100.resources] * a100.count) == 64


@pytest.mark.parametrize(("kind", "key"), [("aws", "InstanceType"), ("gcp", "machineType")])
def test_memory_is_what_ray_leaves_of_the_machine(kind: str, key: str) -> None:
    """The launcher counts 70 % of a machine's memory for workers: the rest is the object store's."""
    for name, given in launcher_file(kind)["available_node_types"].items():
        whole = MEMORY_GIB.get(given["node_config"][key])
        assert (whole is None) == (name == "head")
        if whole is not None:
            assert given["resources"]["memory"] == int(whole * 2**30 * 0.7)


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_all_nodes_together_are_not_more_than_the_cluster_may_have(kind: str) -> None:
    given = launcher_file(kind)
    assert sum(one["max_workers"] for one in given["available_node_types"].values()) <= given["max_workers"]
