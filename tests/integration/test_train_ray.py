"""Training on Ray with two workers: one is killed, the run goes on by itself, and equals a run in one process."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from altdiffusion.training.checkpoints import checkpoint as checkpoints
from altdiffusion.training.launch import train
from altdiffusion.training.local import run_local
from tests.ray_folder import ray_folder
from tests.training_lake import Recorder, config, make_lake

STEPS = 60


@pytest.fixture
def embedded_ray() -> Iterator[None]:
    from altdiffusion.execution import cluster

    with ray_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster.connect(num_cpus=2)
        yield
        cluster.shutdown()


def kill_a_worker(lake: str, killed: list[int], how: signal.Signals) -> None:
    """A signal to one rank as soon as the run has its first checkpoint."""
    while not checkpoints.steps(lake, "align"):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
            process.send_signal(how)
            killed.append(process.pid)
            return


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_two_workers_survive_a_kill_and_resume(tmp_path: Path, embedded_ray: None, how: signal.Signals) -> None:
    lake = make_lake(tmp_path)
    settings = config(
        lake,
        steps=STEPS,
        checkpoint_every=10,
        log_every=10,
        optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4, "ema_decay": 0.9},
        workers={"count": 2, "max_failures": 3},
    )
    spool = tmp_path / "metrics.jsonl"
    killed: list[int] = []
    threading.Thread(target=kill_a_worker, args=(lake, killed, how), daemon=True).start()
    ref = train(settings, lake, spool_path=str(spool))
    assert len(killed) == 1
    assert ref.name == f"align/{checkpoints.step_name(STEPS)}"
    points = [json.loads(line) for line in spool.read_text().splitlines()]
    assert {point["step"] for point in points} == set(range(10, STEPS + 1, 10))
    assert all(point["metrics"]["train/images_per_second"] > 0 for point in points)

    if how == signal.SIGTERM:  # a checkpoint of that very step: nothing is done again
        assert points[-1]["metrics"]["train/wasted_steps"] == 0
        assert points[-1]["metrics"]["train/restarts"] == 1

    again = train(settings, lake)  # the same command finds everything there
    assert again == ref

    torch.set_num_threads(1)
    alone = run_local(replace(settings, run="alone"), lake, reporter=Recorder())
    together = checkpoints.open_step(lake, "align", STEPS)
    for file in (checkpoints.UNET, checkpoints.EMA):
        one, other = alone.tensors(file), together.tensors(file)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
