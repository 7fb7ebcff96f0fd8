"""Samples of a training on Ray: they are in the lake and in MLflow while the training has steps before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

from altdiffusion.config import resolved
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from tests import training_lake
from tests.ray_folder import ray_folder
from tests.signals import take_sigint

ROOT = Path(__file__).resolve().parents[2]
EVERY, STEPS = 50, 1_000_000
JOB = "from jobs import checkpoint_watch; checkpoint_watch.LOOK_EVERY_S = 0.5\n" + (
    "from jobs.harness import leave, main; from jobs.train import JOB; leave(main(JOB))"
)


def write_config(folder: Path, lake: str) -> Path:
    """Write the config of a run that does not end by itself within this test."""
    prompts = folder / "prompts.jsonl"
    lines = [{"id": f"x-{code}", "prompt": "ab", "language": code, "seed": 1} for code in ("en", "de")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = training_lake.config(lake, steps=STEPS, checkpoint_every=EVERY, log_every=50, keep_last=100_000)
    tree = {
        "lake": lake,
        "execution": {"backend": "ray", "num_cpus": 4},
        "train": resolved(train),
        "samples": {
            "prompts": {"file": str(prompts), "default_size": 16},
            "fonts": str(Path(matplotlib.get_data_path()) / "fonts" / "ttf"),
            "steps": 1, "guidance_scale": 1.0, "batch_rows": 2, "workers": {"max": 1}, "every": EVERY,
            "where": "between",
        },
    }  # fmt: skip
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def drawn_steps(lake: str) -> set[int]:
    """Return the steps of which MLflow shows the sheet of all languages and the one of German."""
    tracking = connect(None, lake)
    runs = tracking.client.search_runs([tracking.experiment_id])
    names = [item.path for run in runs for item in tracking.client.list_artifacts(run.info.run_id, "images")]
    steps: dict[str, set[int]] = {"_all": set(), "de": set()}
    for name in names:
        key, *rest = Path(name).name.removeprefix("samples~").split("+")
        if key in steps and rest[:1] == ["step"]:
            steps[key].add(int(rest[1]))
    return steps["_all"] & steps["de"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_samples_arrive_before_the_training_ends(tmp_path: Path) -> None:
    """The run would take hours more when they are there: it is asked to stop afterwards, and does."""
    lake = training_lake.make_lake(tmp_path)
    file = write_config(tmp_path, lake)
    with ray_folder() as folder:
        env = os.environ | {
            "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        }  # fmt: skip
        with open(tmp_path / "log", "w") as log:
            job = subprocess.Popen(
                [sys.executable, "-c", JOB, "--config", str(file)], cwd=ROOT, env=env, stdout=log,
                stderr=subprocess.STDOUT, preexec_fn=take_sigint,
            )  # fmt: skip
        try:
            wait_for_images(job, lake, tmp_path / "log")
            assert job.poll() is None
            at = checkpoints.steps(lake, "align")[-1]
            job.send_signal(signal.SIGTERM)
            status = job.wait(120)
        finally:
            job.kill()
            job.wait()
    assert status == 143, (tmp_path / "log").read_text()
    last = checkpoints.steps(lake, "align")[-1]
    assert at <= last < STEPS  # it went on while they were drawn, and ended because it was asked to
    held: Any = [name for name in Lake(lake).names() if Lake(lake).version(name).manifest.kind == "generations"]
    assert held and Lake(lake).version(held[0]).rows == 2


def wait_for_images(job: subprocess.Popen[bytes], lake: str, log: Path) -> None:
    """Wait until a checkpoint's samples are shown besides those of step 0.

    Raises:
        AssertionError: the job has ended without them, or they do not come.
    """
    end = time.monotonic() + 700
    while time.monotonic() < end:
        assert job.poll() is None, log.read_text()
        if Path(lake, "mlflow.db").exists() and {0} < drawn_steps(lake):
            return
        time.sleep(1)
    raise AssertionError(f"no samples: {log.read_text()}")
