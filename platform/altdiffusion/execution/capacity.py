"""Whether a worker fits into the cluster: now, after a node has started, or never."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import cluster
from altdiffusion.execution.units import Resources
from altdiffusion.monitoring.catalogue import NODES_WAIT_LIMIT_SECONDS, NODES_WAITED_SECONDS
from altdiffusion.monitoring.record import set_to

SHOW_EVERY_S = 30.0
LOOK_EVERY_S = 2.0
_OF_RAY = ("node:", "object_store_memory", "accelerator_type:")
"""Beginnings of the resources that Ray gives every node by itself."""


def wanted(resources: Resources) -> dict[str, float]:
    """Return what a worker takes, by Ray's names; what it takes none of is left out."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": float(resources.memory_bytes)}
    return {name: amount for name, amount in (amounts | dict(resources.custom)).items() if amount}


def named(resources: Resources) -> str:
    """Return what a worker takes as text: `CPU 4, GPU 1`."""
    return _text(wanted(resources))


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


def room(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many workers fit on some empty nodes. A node that does not state its memory may have any."""
    need = wanted(resources)
    return sum(
        min(int(has.get(name, 0.0) / amount + 1e-6) for name, amount in need.items() if name != "memory" or name in has)
        for has in nodes
    )


def have(count: int, resources: Resources) -> str:
    """Return what a cluster has of the workers that are waited for, in words."""
    types = [name for name, has in sorted(_node_types().items()) if fits(resources, [has])]
    if types:
        more = f"it can start nodes of type {', '.join(types)}"
    else:
        more = "no node type of an autoscaler has it" if _node_types() else "it has no autoscaler"
    return f"the cluster has room for {min(room(resources, _nodes()), count):,} of {count:,}; {more}"


_waits_since: list[float] = []
"""When the wait for nodes began, while there is one."""


def note_wait(waits: bool, limit_s: float | None = None) -> None:
    """Record whether this process waits for nodes, and for how long."""
    if not waits:
        _waits_since.clear()
    elif not _waits_since:
        _waits_since.append(time.monotonic())
    set_to(NODES_WAITED_SECONDS, time.monotonic() - _waits_since[0] if _waits_since else 0.0)
    set_to(NODES_WAIT_LIMIT_SECONDS, cluster.wait_for_nodes_s() if limit_s is None else limit_s)


def lacking(resources: Resources, count: int = 1) -> str:
    """Return what a pool without a worker waits for, in words; empty where a node for a worker is there."""
    waits = not fits(resources, _nodes())
    note_wait(waits)
    if not waits:
        return ""
    return f"waits for {count:,} x {{{named(resources)}}}; {have(count, resources)}"


def wait_for_nodes(
    count: int,
    resources: Resources,
    wait_s: float,
    show: Callable[[str], None],
    is_stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Wait until the nodes of a cluster, were they empty, have room for workers that start together.

    An autoscaler is asked for the nodes. Nothing is waited for in an embedded Ray.

    Args:
        wait_s: seconds, after which it is given up.
        show: is handed what is waited for, at once and every 30 s.
        is_stopped: whether the job was asked to stop, which ends the wait.

    Returns:
        Whether there is room; false if the job was asked to stop before.

    Raises:
        AltDiffusionError: a worker fits on no node type, or the nodes did not come in time.
    """
    check_capacity(resources)
    if cluster.is_embedded() or room(resources, _nodes()) >= count:
        return True
    try:
        return _waited(count, resources, wait_s, show, is_stopped)
    finally:
        note_wait(False, wait_s)


def _waited(
    count: int, resources: Resources, wait_s: float, show: Callable[[str], None], is_stopped: Callable[[], bool]
) -> bool:
    began = time.monotonic()
    shown = float("-inf")
    with _demand(count, resources) if _node_types() else contextlib.nullcontext():
        while room(resources, _nodes()) < count:
            note_wait(True, wait_s)
            if is_stopped():
                return False
            now = time.monotonic()
            if now - began >= wait_s:
                raise AltDiffusionError(
                    f"{count:,} workers with {named(resources)} each",
                    f"did not get their nodes within {wait_s:g} s ({have(count, resources)})",
                    "add nodes, ask for fewer or smaller workers, or raise execution.wait_for_nodes_s",
                )
            if now - shown >= SHOW_EVERY_S:
                shown = now
                show(f"waits for {count:,} x {{{named(resources)}}}; {have(count, resources)}")
            time.sleep(min(LOOK_EVERY_S, wait_s))
    return True


@contextlib.contextmanager
def _demand(count: int, resources: Resources) -> Iterator[None]:
    """Have the autoscaler start nodes for workers during the block.

    A placement group ends with this process at the latest. A request of `ray.autoscaler.sdk` would outlive it, and keep
    the nodes for ever.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([dict(wanted(resources))] * count)
    try:
        yield
    finally:
        remove_placement_group(group)


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
    amounts = {name: f"{amount:g}" for name, amount in has.items() if amount and not name.startswith(_OF_RAY)}
    if "memory" in amounts:
        amounts["memory"] = f"{has['memory'] / 2**30:.3g} GiB"
    return ", ".join(f"{name} {amount}" for name, amount in amounts.items())
