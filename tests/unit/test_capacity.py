"""Whether a worker fits into a cluster: refused where it never will, named where it waits."""

from __future__ import annotations

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
    assert capacity.lacking(GPU) == "waits for a node with CPU 4, GPU 1"
    ray_of([HEAD, A100], {"a100": A100})
    assert capacity.lacking(GPU) == ""
