"""Whether a worker fits into the cluster: now, after a node has started, or never."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import cluster
from altdiffusion.execution.units import Resources


def wanted(resources: Resources) -> dict[str, float]:
    """Return what a worker takes, by Ray's names; what it takes none of is left out."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": float(resources.memory_bytes)}
    return {name: amount for name, amount in amounts.items() if amount}


def named(resources: Resources) -> str:
    """Return what a worker takes as text: `CPU 4, GPU 1`."""
    return ", ".join(f"{name} {amount:g}" for name, amount in wanted(resources).items())


def check_capacity(resources: Resources) -> None:
    """Refuse a worker that will never start, because it fits on no node that this Ray has or can get.

    A cluster may get nodes that it does not announce, unless its autoscaler lists the types of its nodes.

    Raises:
        AltDiffusionError: the worker does not fit on this machine (embedded Ray), or on any node type of the cluster.
    """
    nodes = _nodes()
    if cluster.is_embedded():
        has = nodes[0]
        for name, amount in wanted(resources).items():
            if amount > has.get(name, 0.0):
                raise AltDiffusionError(
                    f"a worker with {name} {amount:g}",
                    f"does not fit on this machine, which has {has.get(name, 0.0):g}",
                    "ask for less in the config's resources, or give the address of a cluster",
                )
        return
    types = _node_types()
    if types and not fits(resources, [*nodes, *types.values()]):
        listed = "; ".join(f"{name}: {_text(has)}" for name, has in sorted(types.items()))
        raise AltDiffusionError(
            f"a worker with {named(resources)}",
            f"does not fit on any node that the cluster can start ({listed})",
            "ask for less in the config's workers, or add a node type to the cluster's config",
        )


def fits(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> bool:
    """Return whether a worker fits on one of some empty nodes.

    Args:
        nodes: each node's resources by Ray's names. A node type that does not state its memory may have any.
    """
    return any(
        all(amount <= has.get(name, float("inf") if name == "memory" else 0.0) for name, amount in need.items())
        for has in nodes
        for need in [wanted(resources)]
    )


def fits_somewhere(resources: Resources) -> bool:
    """Return whether a worker fits on an empty node that the cluster has, or announces that it can start."""
    return fits(resources, [*_nodes(), *_node_types().values()])


def lacking(resources: Resources) -> str:
    """Return what a pool without a worker waits for, in words; empty where a node for a worker is there."""
    return "" if fits(resources, _nodes()) else f"waits for a node with {named(resources)}"


def _nodes() -> list[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _node_types() -> dict[str, Mapping[str, float]]:
    """Return the resources of each node type that the cluster's autoscaler can start; none if it lists none."""
    from ray._private.state import state

    config: Any = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return {group.name: dict(group.resources) for group in groups if group.max_count != 0}


def _text(has: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {has[name]:g}" for name in ("CPU", "GPU", "memory") if has.get(name))
