"""A store that was filled again from the lake shows what the original showed, field by field."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    again = train(small, config={"workers": 8})
    report = folder / "report.html"
    report.write_text("<p>of rows</p>")
    with JobRun.open(job="generate", name="g", fingerprint="1" * 64, config={"n": 3}, lake=small.lake) as generate:
        generate.input(small.quality, "model")  # drawn with before its job has ended, and before its name in order
        generate.output(small.generations)
        generate.artifact(str(report))
        generate.artifact(str(folder), "more")
    outbox = MetricOutbox(again.metrics_path)
    again.ship(outbox.path)
    outbox.append(step=101, metrics={"train/loss": 0.5})
    again.checkpoint(small.quality_50, step=50, metrics={"loss": 0.4})
    again.close()
    with JobRun.open(job="evaluate", name="e", fingerprint="2" * 64, config={}, lake=small.lake) as evaluate:
        evaluate.measured(small.quality, {"fid": 12.5}, datasets=[small.prompts])
    write_alias(small.uri, "champion", Alias(ref=small.quality, content="a" * 64), {"first": True})
    rebuild(small.uri)  # which shows the alias


def test_a_rebuilt_store_is_the_original(small_and_store: tuple[SmallLake, str], tmp_path: Path) -> None:
    small, uri = small_and_store
    (tmp_path / "reports").mkdir()
    fill(small, tmp_path / "reports")
    for name in ("original", "once", "twice"):
        (tmp_path / name).mkdir()
    original = everything(connect(None, small.uri), tmp_path / "original")
    names = {run.split("'")[1] for run in original if run.startswith("(")}
    assert names == {"train/quality", "generate/g", "evaluate/e"}
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
