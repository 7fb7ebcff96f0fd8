"""What each cluster file gives Ray, read from the files themselves: node types, resources, numbers, environment."""

from __future__ import annotations

import functools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("aws", "gcp", "kuberay", "slurm")


@dataclass(frozen=True)
class NodeType:
    """A node type as Ray counts it: the most nodes, and the resources of one by Ray's names."""

    count: int
    resources: dict[str, float]


@functools.cache
def launcher_file(kind: str) -> dict[str, Any]:
    path = ROOT / ("cluster.yaml" if kind == "aws" else "deploy/gcp/cluster.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@functools.cache
def kuberay(name: str) -> list[dict[str, Any]]:
    """Return the objects of a file of deploy/kuberay, which are shared: copy what you change."""
    text = (ROOT / "deploy/kuberay" / name).read_text()
    return [tree for tree in yaml.load_all(text, yaml.CSafeLoader) if tree]


def node_types(kind: str) -> dict[str, NodeType]:
    """Return the types of a cluster's nodes by name; the head's own count is 0, as no worker runs there."""
    if kind in ("aws", "gcp"):
        types = launcher_file(kind)["available_node_types"]
        return {
            name: NodeType(given["max_workers"], {key: float(value) for key, value in given["resources"].items()})
            for name, given in types.items()
        }
    if kind == "kuberay":
        spec = kuberay("cluster.yaml")[0]["spec"]
        found = {"head": NodeType(0, _of_pod(spec["headGroupSpec"]))}
        return found | {
            group["groupName"]: NodeType(group["maxReplicas"], _of_pod(group)) for group in spec["workerGroupSpecs"]
        }
    return {name: _of_batch(ROOT / f"deploy/slurm/{job}.sbatch") for name, job in SLURM_JOBS.items()}


SLURM_JOBS = {"curation": "curate", "a100": "train"}


def _of_pod(group: dict[str, Any]) -> dict[str, float]:
    """Return what KubeRay makes of a group's start parameters and limits."""
    given = group["rayStartParams"]
    (container,) = group["template"]["spec"]["containers"]
    resources = {"CPU": float(given["num-cpus"])}
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        resources["GPU"] = float(container["resources"]["limits"]["nvidia.com/gpu"])
    if "memory" in given:
        resources["memory"] = float(given["memory"])
    (custom,) = shlex.split(given.get("resources", "'{}'")) or [""]
    return resources | json.loads(custom.strip('"').replace('\\"', '"'))


def _of_batch(path: Path) -> NodeType:
    text = path.read_text()
    (nodes,) = re.findall(r"^#SBATCH --nodes=(\d+)$", text, re.M)
    (cpus,), (memory,) = re.findall(r"--num-cpus=(\d+)", text), re.findall(r"--memory=(\d+)", text)
    (custom,) = re.findall(r"--resources='([^']*)'", text)
    (gpus,) = re.findall(r"--num-gpus=(\d+)", text)
    gres = re.findall(r"^#SBATCH --gres=gpu:(\d+)$", text, re.M) or ["0"]
    assert gres == [gpus], path
    resources = {"CPU": float(cpus), "GPU": float(gpus), "memory": float(memory), **json.loads(custom)}
    return NodeType(int(nodes), {key: value for key, value in resources.items() if value or key == "CPU"})


def environments(kind: str) -> list[dict[str, str]]:
    """Return the environment that each start of Ray has, one per place where it is set."""
    if kind in ("aws", "gcp"):
        file = launcher_file(kind)
        starts = [command for key in ("head", "worker") for command in file[f"{key}_start_ray_commands"]]
        return [_exported(command) for command in starts if "ray start" in command]
    if kind == "kuberay":
        trees = [kuberay("cluster.yaml")[0]["spec"], kuberay("train.yaml")[0]["spec"]["rayClusterSpec"]]
        found = []
        for spec in trees:
            mode = {"RAY_AUTH_MODE": spec["authOptions"]["mode"]}
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                (container,) = group["template"]["spec"]["containers"]
                found.append(mode | {one["name"]: one["value"] for one in container["env"]})
        return found
    paths = sorted((ROOT / "deploy/slurm").glob("*.sbatch"))
    return [_exported(path.read_text().replace("\\\n", " ")) for path in paths]


def spill_folders(kind: str) -> list[str]:
    """Return where objects spill, one per place where the environment is set, as in `environments`."""
    if kind in ("aws", "gcp"):
        file = launcher_file(kind)
        starts = [command for key in ("head", "worker") for command in file[f"{key}_start_ray_commands"]]
        return [_option(command, "--object-spilling-directory") for command in starts if "ray start" in command]
    if kind == "kuberay":
        trees = [kuberay("cluster.yaml")[0]["spec"], kuberay("train.yaml")[0]["spec"]["rayClusterSpec"]]
        groups = [group for spec in trees for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
        return [group["rayStartParams"]["object-spilling-directory"] for group in groups]
    paths = sorted((ROOT / "deploy/slurm").glob("*.sbatch"))
    return [_option(path.read_text(), "--object-spilling-directory") for path in paths]


def _option(text: str, name: str) -> str:
    (found,) = re.findall(rf"{name}=(\S+)", text)
    return str(shlex.split(found)[0])


def _exported(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in re.findall(r"export ([^;\n]+)", text):
        found |= dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
    return found
