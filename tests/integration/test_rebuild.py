"""A store that was filled again from the lake shows what the original showed, field by field."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altdiffusion.lineage import job_run, system_metrics
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import files
from altdiffusion.storage.aliases import Alias, write_alias
from tests.integration.test_mlflow import empty_store, record, template, train
from tests.lineage_lake import SmallLake
from tests.rebuilt import everything

__all__ = ["template"]


def fill(small: SmallLake, folder: Path) -> None:
    """Record what a line of jobs records: a restart, a failure, overlapping jobs, reports, images, a measurement."""
    with pytest.raises(RuntimeError), train(small) as first:
        record(small, first)
        raise RuntimeError("worker lost")
    again = train(small, config={"train": {"stage": "quality", "steps": 200}})
    report = folder / "report.html"
    report.write_text("<p>of rows</p>")
    with JobRun.open(job="generate", name="g", fingerprint="1" * 64, config={"n": 3}, lake=small.lake) as generate:
        generate.input(small.quality, "model")  # drawn with before its job has ended, and before its name in order
        generate.output(small.generations)
        generate.artifact(str(report))
        generate.artifact(str(folder), "more")
    with JobRun.open(
        job="curate", name="c", fingerprint="3" * 64, config={}, lake=small.lake, system_metrics=True
    ) as curate:
        for place, version in enumerate((small.links, small.images), 1):
            curate.output(version, place=place)
            curate.output(version, place=place)  # as a restart does
        wait_for(lambda: curate.tracking.client.get_run(curate.run_id).data.metrics.get("system/disk_usage_percentage"))
    outbox = MetricOutbox(again.metrics_path)
    again.ship(outbox.path)
    outbox.append(step=101, metrics={"train/loss": 0.5})
    again.checkpoint(small.quality_50, step=50, metrics={"loss": 0.4})
    again.candidate(small.quality)
    again.close()
    with JobRun.open(job="evaluate", name="e", fingerprint="2" * 64, config={}, lake=small.lake) as evaluate:
        evaluate.measured(small.quality, {"fid": 12.5}, datasets=[small.prompts])
    write_alias(small.uri, "champion", Alias(ref=small.quality, content="a" * 64), {"first": True})
    rebuild(small.uri)  # which shows the alias


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rebuilt_store_is_the_original(
    small_and_store: tuple[SmallLake, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "SAMPLES", 1)
    monkeypatch.setattr(job_run, "SystemMetrics", functools.partial(system_metrics.SystemMetrics, every_s=0.2))
    small, uri = small_and_store
    (tmp_path / "reports").mkdir()
    fill(small, tmp_path / "reports")
    for name in ("original", "once", "twice"):
        (tmp_path / name).mkdir()
    original, quality = everything(connect(None, small.uri), tmp_path / "original"), str(small.quality)
    names = {run.split("'")[1] for run in original if run.startswith("(")}
    assert [one[1] for one in original["registered"].values()] == [dict.fromkeys(("candidate", "champion"), quality)]
    assert names == {"train/quality", "generate/g", "evaluate/e", "curate/c"}
    (points,) = [run["points"] for name, run in original.items() if "curate/c" in name]
    assert [(step, value) for step, _, value in points["funnel/de"]] == [(1, "1.0"), (2, "1.0")]
    assert [(step, value) for step, _, value in points["rejected/too_small"]] == [(1, "2.0")]
    assert "system/cpu_utilization_percentage" in points
    command = [sys.executable, "-m", "altdiffusion.cli", "lineage", "rebuild", "--tracking-uri", uri]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    # From another working directory, with the lake's relative path.
    subprocess.run([*command, "--lake", "lake"], cwd=Path(small.uri).parent, env=environment, check=True)
    place = connect(uri, small.uri)
    assert everything(place, tmp_path / "once") == original
    rebuild(small.uri, uri)
    assert everything(place, tmp_path / "twice") == original


@pytest.fixture
def small_and_store(tmp_path: Path, template: Path) -> tuple[SmallLake, str]:
    small = SmallLake(tmp_path / "lake")
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    return small, empty_store(small, template)


def test_a_killed_job_is_marked_and_a_running_one_is_not(small_and_store: tuple[SmallLake, str]) -> None:
    small, uri = small_and_store
    code = f"""
import os
from altdiffusion.lineage.job_run import JobRun
run = JobRun.open(job="train", name="quality", fingerprint="f" * 64, config={{}}, lake={small.uri!r})
run.input("{small.latents.ref}")
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, check=False)
    running = JobRun.open(job="curate", name="more", fingerprint="e" * 64, config={}, lake=small.uri)
    rebuild(small.uri, uri)
    tracking = connect(uri, small.uri)
    infos = {run.info.run_name: run.info for run in tracking.client.search_runs([tracking.experiment_id])}
    assert {name: info.status for name, info in infos.items()} == {"train/quality": "KILLED", "curate/more": "RUNNING"}
    assert infos["train/quality"].end_time >= infos["train/quality"].start_time
    running.close()
    rebuild(small.uri, uri)
    assert tracking.client.get_run(infos["curate/more"].run_id).info.status == "FINISHED"


def test_a_journal_of_an_earlier_version_has_no_negative_duration(small_and_store: tuple[SmallLake, str]) -> None:
    small, uri = small_and_store
    with train(small) as run:
        record(small, run)
    about = json.loads(Path(run.folder, "job.json").read_bytes())
    del about["start_ms"]
    files.write_atomic(f"{run.folder}/job.json", files.canonical_json(about))
    rebuild(small.uri, uri)
    tracking = connect(uri, small.uri)
    (again,) = tracking.client.search_runs([tracking.experiment_id])
    original = run.tracking.client.get_run(run.run_id).info
    assert original.start_time <= again.info.start_time <= again.info.end_time == original.end_time


def test_the_code_of_a_job_is_given_back_without_its_journal(small_and_store: tuple[SmallLake, str]) -> None:
    """As in a lake in an object store, whose journals are on the machine of the job."""
    small, uri = small_and_store
    with train(small) as run:
        record(small, run)
    original = run.tracking.client.get_run(run.run_id).data.tags
    shutil.rmtree(Path(small.uri, "tracking"))
    rebuild(small.uri, uri)
    tracking = connect(uri, small.uri)
    runs = {one.info.run_name: one.data.tags for one in tracking.client.search_runs([tracking.experiment_id])}
    source = {key: value for key, value in original.items() if key.startswith("altdiffusion.source.")}
    assert {"version", "commit", "python", "ray", "user", "host", "command"} <= {key.split(".")[2] for key in source}
    assert source.items() <= runs["train/quality"].items()
    assert runs["train/quality"]["mlflow.user"] == original["mlflow.user"]
