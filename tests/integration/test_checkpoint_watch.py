"""What MLflow shows of a training while it runs: checkpoints are models when they are written, not when it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion.config import resolved
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.lineage.tracking import connect
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.reporting.reporter import LineReporter
from jobs import checkpoint_watch
from jobs.harness import main
from jobs.train import JOB
from tests import training_lake
from tests.rebuilt import everything


class Held(LineReporter):
    """A reporter that holds the training after its second checkpoint."""

    reached, released = threading.Event(), threading.Event()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        super().checkpoint(checkpoint)
        if checkpoint.step == 6:
            self.reached.set()
            assert self.released.wait(120)


def test_checkpoints_and_metrics_arrive_while_the_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = training_lake.make_lake(tmp_path)
    monkeypatch.setattr(checkpoint_watch, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("altdiffusion.training.launch_local.LineReporter", Held)
    tree = {
        "lake": lake,
        "execution": {"backend": "inline"},
        "train": resolved(training_lake.config(lake, log_every=1)),
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    status: list[int] = []
    job = threading.Thread(target=lambda: status.append(main(JOB, ["--config", str(file)])), daemon=True)
    job.start()
    assert Held.reached.wait(120)
    try:
        client, models, run = wait_for_models(lake, ["align/step-00000003", "align/step-00000006"])
        assert run.info.status == "RUNNING"
        assert "Not exported yet" in models["align/step-00000003"].tags["mlflow.note.content"]
        assert sorted(one.step for one in run.outputs.model_outputs) == [3, 6]
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) >= 3
        assert "datasets" in run.data.params
    finally:
        Held.released.set()
    job.join(120)
    assert status == [0]
    names = [f"align/step-{step:08d}" for step in (3, 6, 9, 12)]
    client, models, run = wait_for_models(lake, names)
    assert run.info.status == "FINISHED"
    notes = [models[name].tags["mlflow.note.content"] for name in names]
    assert all("no longer in the lake" in note for note in notes[:2])  # keep_last: 2
    assert all("from_pretrained" in note and "### Model card" in note for note in notes[2:])
    assert models[names[3]].tags["lineage.export"] == f"{lake}/exports/{names[3]}"
    points = [(point.step, point.key) for model in models.values() for point in model.metrics or ()]
    assert len(points) == len(set(points))  # each was recorded once
    tracking = connect(None, lake)
    other = f"sqlite:///{tmp_path}/other.db"
    rebuild(lake, other)
    for folder in ("original", "rebuilt"):
        (tmp_path / folder).mkdir()
    assert everything(connect(other, lake), tmp_path / "rebuilt") == everything(tracking, tmp_path / "original")


def wait_for_models(lake: str, names: list[str]) -> tuple[Any, dict[str, Any], Any]:
    """Return MLflow, its models by name and its run, as soon as it has the named models."""
    tracking = connect(None, lake)
    end = time.monotonic() + 60
    while True:
        found = tracking.client.search_logged_models([tracking.experiment_id])
        models = {model.tags["lineage.ref"].partition(":")[2].partition("@")[0]: model for model in found}
        (run,) = tracking.client.search_runs([tracking.experiment_id])
        if set(names) <= set(models) and "train/loss" in run.data.metrics:
            return tracking.client, models, run
        assert time.monotonic() < end, sorted(models)
        time.sleep(0.2)
