"""The catalogue of metrics: the document lists it, the dashboard and the alerts use it, reports fill it.

Renew the table in docs/monitoring.md: `python -m tests.unit.test_monitoring`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altdiffusion.execution import capacity
from altdiffusion.lineage import outbox
from altdiffusion.monitoring import catalogue, record
from altdiffusion.monitoring.catalogue import CATALOGUE
from altdiffusion.training.faults.goodput import Goodput
from altdiffusion.training.reporting.peak import Peak
from altdiffusion.training.reporting.progress import Progress
from altdiffusion.training.reporting.run_metrics import RunMetrics
from tests import training_lake

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "monitoring.md"
_TABLE = re.compile(r"(?<=<!-- metrics -->\n).*?(?=\n?<!-- /metrics -->)", re.DOTALL)


def table() -> str:
    rows = ["| metric, as Prometheus has it | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in CATALOGUE:
        names = "`, `".join(metric.exported[:1])
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{names}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows)


def test_the_document_lists_every_metric() -> None:
    found = _TABLE.search(DOCUMENT.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0].strip() == table(), "run python -m tests.unit.test_monitoring"


def test_labels_take_few_values() -> None:
    allowed = {"step", "dataset", "reason"}
    assert {label for metric in CATALOGUE for label in metric.labels} <= allowed
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    assert all(bool(metric.buckets) == (metric.kind == "histogram") for metric in CATALOGUE)


def test_without_ray_nothing_is_recorded_and_nothing_fails() -> None:
    record.set_to(catalogue.TRAIN_LOSS, 1.0)
    record.add(catalogue.ROWS_READ, 1, step="s", dataset="d")
    record.observe(catalogue.UNIT_SECONDS, 1, step="s")


def test_while_another_thread_imports_ray_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", type("Ray", (), {}))
    record.set_to(catalogue.TRAIN_LOSS, 1.0)
    assert not caplog.records


def test_a_metric_that_ray_refuses_is_named_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", type("Ray", (), {"is_initialized": lambda: True}))
    monkeypatch.setattr(record, "_made", {})
    monkeypatch.setattr(record, "_failed", set())
    monkeypatch.setattr(record, "_make", lambda metric: 1 / 0)
    for _ in range(3):
        record.set_to(catalogue.TRAIN_LOSS, 1.0)
    assert [line.message for line in caplog.records] == ["metric train_loss is not exported: division by zero"]


def test_a_report_of_a_training_becomes_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, Any] = {}
    monkeypatch.setattr(
        "altdiffusion.training.reporting.run_metrics.set_to", lambda metric, value: now.__setitem__(metric.name, value)
    )
    config = training_lake.config("lake", steps=40, log_every=2, checkpoint_every=10, global_batch=8)
    metrics = RunMetrics(config)
    metrics.progress(
        Progress(
            step=10, steps=40, loss=0.5, grad_norm=1.0, lr=1e-4, samples_per_second=4.0,
            samples_per_second_per_worker=2.0, mfu=0.25, peak=Peak(tflops=1.0, name="x"), memory_bytes=1 << 20,
            data_wait=0.1, epochs=1.0, samples_seen=80, skipped_steps=1, seconds_left=60.0,
            goodput=Goodput(share=0.9, wasted_steps=3, restarts=2, stall_s=1.0, total_s=100.0),
        )
    )  # fmt: skip
    assert now["train_step_seconds"] == 2.0
    assert (now["train_report_interval_seconds"], now["train_checkpoint_interval_seconds"]) == (4.0, 20.0)
    assert (now["train_goodput_ratio"], now["train_wasted_steps"], now["train_restarts"]) == (0.9, 3, 2)
    assert now["train_checkpoint_timestamp_seconds"] == now["train_reported_timestamp_seconds"]
    metrics.checkpoint(10)
    assert now["train_checkpoint_step"] == 10
    of_driver = {metric.name for metric in CATALOGUE if metric.name.startswith("train_")} - {"train_checkpoint_seconds"}
    assert now.keys() == of_driver


def test_a_wait_for_nodes_grows_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    clock = iter((10.0, 10.0, 12.5))
    monkeypatch.setattr(capacity, "_waits_since", [])
    monkeypatch.setattr(capacity, "set_to", lambda metric, value: seen.append((metric.name, value)))
    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    capacity.note_wait(True, 60.0)
    capacity.note_wait(True, 60.0)
    capacity.note_wait(False, 60.0)
    waited = [value for name, value in seen if name == "nodes_waited_seconds"]
    assert waited == [0.0, 2.5, 0.0]
    assert {value for name, value in seen if name == "nodes_wait_limit_seconds"} == {60.0}


def test_the_outbox_reports_what_waits_and_how_often_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, float] = {}
    monkeypatch.setattr(outbox, "set_to", lambda metric, value: now.__setitem__(metric.name, value))
    lines = outbox.JsonLines(str(tmp_path / "o.jsonl"))
    lines.append({"step": 1})
    answers = threading.Event()

    def send(records: Sequence[outbox.Record]) -> None:
        if not answers.is_set():
            raise ConnectionError("MLflow is down")

    shipper = outbox.Shipper(interval_s=0.01, max_wait_s=0.01)
    shipper.add(outbox.OutboxReader(lines.path), send)
    deadline = time.monotonic() + 60
    while now.get("outbox_failed_tries", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert now["outbox_failed_tries"] >= 2
    assert now["outbox_bytes"] == len('{"step":1}\n')
    answers.set()
    assert shipper.stop(10.0)
    assert now == {"outbox_failed_tries": 0, "outbox_bytes": 0}


if __name__ == "__main__":
    DOCUMENT.write_text(_TABLE.sub(lambda _: table(), DOCUMENT.read_text(encoding="utf-8"), count=1), encoding="utf-8")
