"""A function on each node of the cluster, pinned to it: only a node itself knows what it is like."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from altdiffusion.errors import AltDiffusionError, first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A node that is alive: Ray's id, a name for people, the address that other nodes reach, its number of GPUs."""

    id: str
    name: str
    address: str
    gpus: float


def alive_nodes() -> list[Node]:
    """Return the nodes in the order of their addresses; where two have one address, their names have the id too."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [str(node["NodeManagerAddress"]) for node in alive]
    found = [
        Node(
            node["NodeID"],
            address if addresses.count(address) == 1 else f"{address}/{node['NodeID'][:6]}",
            address,
            float(node["Resources"].get("GPU", 0)),
        )
        for node, address in zip(alive, addresses, strict=True)
    ]
    return sorted(found, key=lambda node: (node.address, node.id))


def on_each(
    nodes: Sequence[Node],
    function: Callable[..., T],
    arguments: Sequence[Sequence[Any]],
    *,
    timeout_s: float,
    num_gpus: float = 0,
) -> list[T | AltDiffusionError]:
    """Run a function on each node at the same time, and return its results, or why there is none.

    Args:
        arguments: those of the function, one sequence per node.
        timeout_s: seconds that all nodes together may take.
        num_gpus: GPUs that each call reserves. It reserves no CPUs, so that busy nodes and the head answer too.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0)(_with_all_gpus if num_gpus == 0 else _call)
    calls = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(function, *given)
        for node, given in zip(nodes, arguments, strict=True)
    ]
    ends = time.monotonic() + timeout_s
    results: list[T | AltDiffusionError] = []
    for node, call in zip(nodes, calls, strict=True):
        try:
            results.append(ray.get(call, timeout=max(0.0, ends - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(call, force=True)
            problem = f"did not answer within {timeout_s:g} s"
            results.append(AltDiffusionError(f"node {node.name}", problem, "look at the node, and restart Ray there"))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AltDiffusionError):
                results.append(cause)
            else:
                problem = f"failed ({type(cause).__name__}: {first_line(cause)})"
                results.append(AltDiffusionError(f"node {node.name}", problem, "look at the logs of that node"))
        except ray.exceptions.RayError as error:
            problem = f"cannot be used ({first_line(error)})"
            results.append(AltDiffusionError(f"node {node.name}", problem, "look at the node, and restart Ray there"))
    return results


def _call(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _with_all_gpus(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that sees every GPU: Ray hides them from a task that reserves none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return function(*arguments)
