"""A dry run of a GPU job looks whether the cluster that the config names has a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from altdiffusion.config import load_config
from altdiffusion.execution import capacity, cluster
from jobs.cluster_look import cluster_problems, gpu_sections
from pipelines.kinds import config_class

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "m18"


@pytest.mark.parametrize(
    ("job", "file", "section"),
    [
        ("train", "alignment", "train.workers"), ("encode", "encode", "workers"), ("score", "score", "workers"),
        ("generate", "generate", "workers"), ("evaluate", "evaluate", "workers"), ("measure", "measure", "workers"),
    ],
)  # fmt: skip
def test_a_cluster_without_a_gpu_is_refused(job: str, file: str, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_config(config_class(job), str(CONFIGS / f"{file}.yaml"), ["execution.address=10.0.0.5:6379"])
    assert section in dict(gpu_sections(given))
    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr(capacity, "_node_types", dict)
    monkeypatch.setattr(capacity, "_nodes", lambda: [{"CPU": 64.0}])
    assert [str(problem).partition(":")[0] for problem in cluster_problems(given)] == [*dict(gpu_sections(given))]
    monkeypatch.setattr(capacity, "_nodes", lambda: [{"CPU": 64.0, "GPU": 8.0}])
    assert cluster_problems(given) == []
    monkeypatch.setattr(capacity, "_nodes", lambda: [{"CPU": 64.0}])
    monkeypatch.setattr(capacity, "_node_types", lambda: {"gpu": {"CPU": 64.0, "GPU": 8.0}})
    assert cluster_problems(given) == []  # the autoscaler can start one


def test_without_an_address_no_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_config(config_class("encode"), str(CONFIGS / "encode.yaml"), [])
    monkeypatch.setattr(cluster, "connect", None)
    assert cluster_problems(given) == []


def test_an_address_where_nothing_answers_is_a_problem() -> None:
    given = load_config(config_class("encode"), str(CONFIGS / "encode.yaml"), ["execution.address=127.0.0.1:9"])
    (problem,) = cluster_problems(given)
    assert "is unreachable" in str(problem)
