"""The workers of the published recipe's jobs fill the nodes of cluster.yaml, by the numbers that Ray counts with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion.config import load_config
from altdiffusion.execution.capacity import fits, room
from altdiffusion.execution.units import Resources
from altdiffusion.training.config.workers import WorkersConfig
from pipelines.common import Workers
from pipelines.kinds import config_class

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES = CLUSTER["available_node_types"]
NODES = {name: {key: float(value) for key, value in given["resources"].items()} for name, given in TYPES.items()}
CONFIGS = sorted((ROOT / "jobs/configs/m18").glob("*.yaml"))
STAGES = ("alignment", "distillation", "guidance", "quality")
MEMORY_GIB = {"c6i.16xlarge": 128, "p4d.24xlarge": 1152}
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_workers_fill_the_nodes_that_they_run_on(path: Path) -> None:
    for key, count, needs in of_file(path):
        on = {name: node for name, node in NODES.items() if fits(needs, [node])}
        assert list(on) == ["a100" if needs.num_gpus else "curation"], (key, on)
        ((name, node),) = on.items()
        full = room(needs, [node])
        scarce = "GPU" if needs.num_gpus else "CPU"
        used = full * (needs.num_gpus or needs.num_cpus)
        assert 1 - used / node[scarce] <= WASTE_AT_MOST, (
            f"{key}: {full} workers use {used:g} of {node[scarce]:g} {scarce}"
        )
        assert count <= full * TYPES[name]["max_workers"], f"{key}: {count} workers do not fit on {name}"


def test_the_64_workers_of_training_take_the_8_nodes_whole() -> None:
    needs = Resources(num_cpus=10, num_gpus=1, custom={"training": 1})
    assert room(needs, [NODES["a100"]] * TYPES["a100"]["max_workers"]) == 64


def test_memory_is_what_ray_leaves_of_the_instance() -> None:
    """The launcher counts 70 % of an instance's memory for workers: the rest is the object store's."""
    for name, node in NODES.items():
        whole = MEMORY_GIB.get(TYPES[name]["node_config"]["InstanceType"])
        assert (whole is None) == (name == "head")
        if whole is not None:
            assert node["memory"] == int(whole * 2**30 * 0.7)


def test_all_nodes_together_are_not_more_than_the_cluster_may_have() -> None:
    assert sum(given["max_workers"] for given in TYPES.values()) <= CLUSTER["max_workers"]
