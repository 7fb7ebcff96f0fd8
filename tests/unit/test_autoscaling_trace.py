"""The trace of a run on autoscaled nodes: its figures, its plot, the log of what was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from ray.autoscaler._private.util import prepare_config, validate_config

from altdiffusion.storage.dataset import Lake
from benchmarks import autoscaling
from benchmarks.autoscaling_trace import Draw, Sample, Trace, draw_plot, figures
from benchmarks.fake_nodes import autoscaling_config
from benchmarks.logged_draws import LoggedWork, drawn_again, read_log
from tests import generation_lake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trace() -> Trace:
    """One node from 5 s, two from 20 s, one killed at 50 s and replaced at 60 s, the job done at 80 s, 0 at 95 s."""
    return Trace(
        max_nodes=2, images=100, batch_rows=4, killed_s=50.0, ended_s=80.0, drawn_again=4, digest="d" * 64,
        samples=[
            Sample(s=float(s), nodes=nodes(s), workers=nodes(s), images=min(max(s - 10, 0) * 2, 100))
            for s in range(100)
        ],
        draws=[
            Draw(s=float(s), worker=worker, images=4)
            for s in range(10, 54)
            for worker, starts, ends, every in ((1, 10, 50, 2), (2, 30, 54, 4))
            if starts <= s < ends and (s - starts) % every == 0
        ],
    )  # fmt: skip


def nodes(s: int) -> int:
    return 0 if s < 5 or s >= 95 else 1 if s < 20 or 55 <= s < 60 else 2


def test_the_figures_are_those_of_the_trace(trace: Trace) -> None:
    rows = dict(figures(trace))
    assert rows["first node after"] == "5 s" and rows["2 nodes after"] == "20 s"
    assert rows["images/s, one worker"] == "2.00"  # 10 batches of 4 after the first one, in 20 s
    assert rows["images/s, two workers until the kill"] == "2.80"  # 9 and 5 batches of 4 in 20 s
    assert rows["Ray has seen that, after the kill"] == "5 s"
    assert rows["its replacement is there, after the kill"] == "10 s"
    assert rows["0 nodes, after the job's end"] == "15 s"
    assert rows["images drawn twice"] == "4 (batches have 4)"
    assert trace.rates()[30] == pytest.approx(2.0) and trace.rates()[80] == 0


def test_the_table_of_the_docs_is_that_of_the_recorded_trace() -> None:
    recorded = Trace.load(ROOT / "docs/images/autoscaling.json")
    text = (ROOT / "docs/autoscaling.md").read_text()
    for name, value in figures(recorded):
        assert f"| {name} | {value} |" in text, name
    autoscaling.check(recorded, expected=recorded.digest)


def test_a_trace_is_what_was_saved_and_becomes_a_plot(trace: Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    draw_plot(trace, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (990, 550)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"digest": "e" * 64}, "the version is eeee"),
        ({"drawn_again": 8}, "8 images were drawn again"),
        ({"images": 101}, "100 of 101 images"),
        ({"max_nodes": 3}, "never as many nodes"),
    ],
)
def test_a_run_that_lost_something_is_refused(trace: Trace, changes: dict[str, object], problem: str) -> None:
    autoscaling.check(trace, expected="d" * 64)
    with pytest.raises(RuntimeError, match=problem):
        autoscaling.check(replace(trace, **changes), expected="d" * 64)  # type: ignore[arg-type]


def test_the_log_has_each_image_once_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=10)
    plain = generation_lake.generate(lake, generation_lake.config(lake), dataset="plain")
    monkeypatch.setattr(generation_lake, "GenerateWork", LoggedWork)
    logged = generation_lake.generate(lake, generation_lake.config(lake), dataset="generations")
    assert logged.read(["image_sha256"]).equals(plain.read(["image_sha256"]))
    batches = read_log(Path(lake))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(
        logged.read(["row_key"])["row_key"].to_pylist()
    )
    assert drawn_again(batches) == 0 and drawn_again([*batches, batches[0]]) == len(batches[0].keys)
    assert autoscaling.finished_images(Path(lake)) == logged.rows == 10
    assert autoscaling.digest(Path(lake)) == Lake(lake).version("generations").ref.digest


def test_the_fake_cluster_passes_rays_validation() -> None:
    config = prepare_config(autoscaling_config("127.0.0.1:6379", 2, 10))
    validate_config(config)
    node_type = config["available_node_types"]["generation"]
    assert (node_type["min_workers"], node_type["max_workers"]) == (0, 2)
