"""What a dead job has left is shipped by the next start of any job of the lake, and by `lineage flush`: once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.lineage.job_folder import ShippingLock
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.tracking import connect
from tests.integration.test_mlflow import template, train
from tests.lineage_lake import SmallLake

__all__ = ["template"]
STEPS = 50
DEAD = """
import os, sys
from altdiffusion.lineage import outbox
outbox.Shipper._ship_all = lambda self: False  # its server is down
from altdiffusion.lineage.job_run import JobRun
run = JobRun.open(job="train", name="dead", fingerprint="d" * 64, config={}, lake=sys.argv[1])
run.input(sys.argv[2])
points = outbox.MetricOutbox(run.metrics_path)
run.ship(points.path)
for step in range(int(sys.argv[3])):
    points.append(step=step, metrics={"loss": step / 3})
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def small(tmp_path: Path, template: Path) -> SmallLake:
    """Return a lake in which a job was killed while its server was down."""
    small = SmallLake(tmp_path / "lake")
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    command = [sys.executable, "-c", DEAD, small.uri, str(small.latents.ref), str(STEPS)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == -9
    return small


def check_shipped(small: SmallLake) -> None:
    """Check that MLflow has what the dead job has written: each point once, with its time, and the run's end."""
    (folder,) = Path(small.uri, "tracking").glob("train-dead-*")
    written = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    tracking = connect(None, small.uri)
    runs = tracking.client.search_runs([tracking.experiment_id], "attributes.run_name = 'train/dead'")
    (run,) = runs
    points = tracking.client.get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.timestamp, p.value) for p in sorted(points, key=lambda p: p.step)] == [
        (line["step"], line["time_ms"], line["metrics"]["loss"]) for line in written
    ]
    assert len(points) == STEPS
    assert (run.info.status, run.info.end_time) == ("KILLED", written[-1]["time_ms"])
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["latents"]


def test_the_next_start_of_any_job_ships_it(small: SmallLake) -> None:
    with JobRun.open(job="curate", name="other", fingerprint="c" * 64, config={}, lake=small.uri):
        pass
    check_shipped(small)
    (folder,) = Path(small.uri, "tracking").glob("train-dead-*")
    before = (folder / "journal.jsonl").read_bytes()
    with train(small):
        pass
    check_shipped(small)
    assert (folder / "journal.jsonl").read_bytes() == before


def test_flush_lists_ships_and_repeats(small: SmallLake, capsys: pytest.CaptureFixture[str]) -> None:
    running = train(small)
    running.close("KILLED")
    shutil.rmtree(running.folder)
    (folder,) = Path(small.uri, "tracking").glob("train-dead-*")
    for name in folder.glob("*.offset"):  # as if that start had not shipped it
        name.unlink()
    flush = ["lineage", "flush", "--lake", small.uri]
    assert main([*flush, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "train/dead -> the database in the lake: " in text and f"{STEPS:,} metric points" in text
    lock = ShippingLock(str(folder))
    assert lock.take()
    assert main(flush) == 1 and "is being shipped by another process" in capsys.readouterr().err
    lock.release()
    assert main(flush) == 0 and capsys.readouterr().out.startswith("shipped: train/dead")
    check_shipped(small)
    assert main(flush) == 0 and capsys.readouterr().out == "nothing waits\n"
    check_shipped(small)
    assert main(["lineage", "flush", "--lake", f"{small.uri}-typo"]) == 2
    (folder / "job.json").write_text("{")
    assert main(flush) == 3 and "job.json" in capsys.readouterr().err


def test_a_run_that_is_gone_and_a_job_that_runs_are_named(
    small: SmallLake, capsys: pytest.CaptureFixture[str], template: Path
) -> None:
    running = JobRun.open(job="curate", name="more", fingerprint="e" * 64, config={}, lake=small.uri)
    assert main(["lineage", "flush", "--lake", small.uri, "--dry-run"]) == 0
    assert "curate/more" in (text := capsys.readouterr().out) and "ships by itself" in text
    running.close()
    for name in Path(small.uri, "tracking").rglob("*.offset"):
        name.unlink()
    shutil.copy(template, Path(small.uri, "mlflow.db"))  # an emptied MLflow
    assert main(["lineage", "flush", "--lake", small.uri]) == 1
    error = capsys.readouterr().err
    assert error.count("is not there") == 2 and "lineage rebuild" in error


def test_a_full_disk_costs_nothing_that_mlflow_can_take(
    tmp_path: Path, template: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel answers each write to the journal with ENOSPC: the records go from memory, and are named."""
    small = SmallLake(tmp_path / "lake")
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    with train(small) as run:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, run._journal._descriptor)
        os.close(full)
        run.input(small.latents)
        run.checkpoint(small.quality, step=100, metrics={"loss": 0.25})
    seen = run.tracking.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED" and len(seen.inputs.dataset_inputs) == 1
    assert len(seen.outputs.model_outputs) == 1
    messages = [one for one in caplog.messages if "outbox" in one]
    assert len(messages) == 2 and "was dropped" in messages[0]
    assert "3 records" in messages[1] and f"checkpoint {small.quality}" in messages[1] and "status" in messages[1]
