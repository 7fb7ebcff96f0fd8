"""Whether a worker fits into a cluster: refused where it never will, named where it waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import capacity, cluster
from altdiffusion.execution.units import Resources

GPU = Resources(num_cpus=4, num_gpus=1)
HEAD = {"CPU": 0.0}
CURATION = {"CPU": 64.0}
A100 = {"CPU": 96.0, "GPU": 8.0}


@pytest.fixture
def ray_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def has(nodes: list[dict[str, float]], types: dict[str, dict[str, float]]) -> None:
        monkeypatch.setattr(cluster, "is_embedded", lambda: False)
        monkeypatch.setattr(capacity, "_nodes", lambda: nodes)
        monkeypatch.setattr(capacity, "_node_types", lambda: types)

    return has


def test_a_worker_that_fits_on_no_node_type_is_refused_with_both_named(ray_of: Any) -> None:
    ray_of([HEAD], {"curation": CURATION})
    with pytest.raises(AltDiffusionError, match=r"CPU 4, GPU 1: does not fit on any node .*\(curation: CPU 64\)"):
        capacity.check_capacity(GPU)


@pytest.mark.parametrize(
    "nodes, types",
    [
        ([HEAD], {"curation": CURATION, "a100": A100}),
        ([HEAD, A100], {"curation": CURATION}),  # a node that the autoscaler did not start
        ([HEAD], {}),  # nodes join without being announced
    ],
)
def test_a_worker_that_may_get_a_node_is_not_refused(
    ray_of: Any, nodes: list[dict[str, float]], types: dict[str, dict[str, float]]
) -> None:
    ray_of(nodes, types)
    capacity.check_capacity(GPU)


def test_one_node_must_have_all_of_it_and_a_type_may_leave_its_memory_out() -> None:
    assert not capacity.fits(GPU, [CURATION, {"CPU": 2.0, "GPU": 8.0}])
    assert capacity.fits(Resources(memory_bytes=2**40), [CURATION])
    assert not capacity.fits(Resources(memory_bytes=2**40), [{**CURATION, "memory": 2.0**30}])


def test_what_a_pool_waits_for_is_named_until_a_node_is_there(ray_of: Any) -> None:
    ray_of([HEAD], {"a100": A100})
    assert capacity.lacking(GPU, 3) == (
        "waits for 3 x {CPU 4, GPU 1}; the cluster has room for 0 of 3; it can start nodes of type a100"
    )
    ray_of([HEAD], {})
    assert capacity.lacking(GPU).endswith("room for 0 of 1; it has no autoscaler")
    ray_of([HEAD, A100], {"a100": A100})
    assert capacity.lacking(GPU) == ""


def test_room_is_what_the_scarcest_resource_leaves() -> None:
    worker = Resources(num_cpus=4, memory_bytes=8 * 2**30, custom={"curation": 1})
    node = {"CPU": 64.0, "memory": 89.6 * 2**30, "curation": 64.0}
    assert capacity.room(worker, [node]) == 11 and capacity.room(worker, [node, node, HEAD]) == 22
    assert capacity.room(worker, [{"CPU": 64.0, "memory": 2.0**40}]) == 0
    assert capacity.room(GPU, [A100]) == 8


def test_workers_that_start_together_wait_for_their_nodes_and_not_for_ever(
    ray_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, shown = [HEAD], []
    ray_of(nodes, {})
    monkeypatch.setattr(capacity, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(capacity, "SHOW_EVERY_S", 0.02)
    with pytest.raises(AltDiffusionError, match=r"16 workers with CPU 4, GPU 1 each: did not get .* 0 of 16"):
        capacity.wait_for_nodes(16, GPU, 0.1, shown.append)
    assert shown[0] == "waits for 16 x {CPU 4, GPU 1}; the cluster has room for 0 of 16; it has no autoscaler"
    assert len(shown) > 1

    def join(text: str) -> None:
        nodes.append(A100)

    assert capacity.wait_for_nodes(16, GPU, 60, join)  # one node per look
    assert nodes == [HEAD, A100, A100]
    ray_of([HEAD], {"curation": CURATION})
    with pytest.raises(AltDiffusionError, match="does not fit on any node"):
        capacity.wait_for_nodes(16, GPU, 60, shown.append)


def test_an_autoscaler_sees_what_is_waited_for_and_only_as_long(ray_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, float]] = [HEAD]
    seen: list[str] = []
    ray_of(nodes, {"a100": A100})

    @contextmanager
    def demand(count: int, resources: Resources) -> Iterator[None]:
        seen.append(f"{count} asked for")
        yield
        seen.append("no longer")

    monkeypatch.setattr(capacity, "_demand", demand)
    monkeypatch.setattr(capacity, "LOOK_EVERY_S", 0.01)
    capacity.wait_for_nodes(8, GPU, 60, lambda text: nodes.append(A100))
    assert seen == ["8 asked for", "no longer"]
    capacity.wait_for_nodes(8, GPU, 60, seen.append)  # they are there
    assert len(seen) == 2


def test_a_job_that_is_asked_to_stop_waits_no_longer(ray_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_of([HEAD], {})
    shown: list[str] = []
    monkeypatch.setattr(capacity, "LOOK_EVERY_S", 0.01)
    assert not capacity.wait_for_nodes(8, GPU, 60, shown.append, lambda: bool(shown))
    assert len(shown) == 1
