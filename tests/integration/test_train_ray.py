"""Training on Ray with two workers: one is killed, the run goes on by itself, and equals a run in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from altdiffusion.config import resolved
from altdiffusion.monitoring.identity import Identity, adopt
from altdiffusion.training import launch_ray
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.faults import goodput
from altdiffusion.training.faults.notice import STOP, PreemptionNotice, on_stop_signals
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.launch_ray import train
from altdiffusion.training.reporting.relay import MessageRelay, RelayReader, RelayReporter
from tests.ray_folder import embedded_ray, ray_folder, scraped
from tests.signals import take_sigint
from tests.training_lake import Recorder, config, make_lake

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture
def ray_here() -> Iterator[None]:
    with embedded_ray():
        yield


def kill_a_worker(lake: str, killed: list[int], how: signal.Signals) -> None:
    """Send a signal to one rank as soon as the run has its first checkpoint."""
    while not checkpoints.steps(lake, "align"):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
            process.send_signal(how)
            killed.append(process.pid)
            return


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_two_workers_survive_a_kill_and_resume(tmp_path: Path, ray_here: None, how: signal.Signals) -> None:
    lake = make_lake(tmp_path)
    settings = config(
        lake,
        steps=STEPS,
        checkpoint_every=10,
        log_every=10,
        optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4, "ema_decay": 0.9},
        workers={"count": 2, "max_failures": 3},
    )
    outbox = tmp_path / "metrics.jsonl"
    killed: list[int] = []
    threading.Thread(target=kill_a_worker, args=(lake, killed, how), daemon=True).start()
    adopt(Identity(job="train", run=how.name))
    try:
        ref = train(settings, lake, outbox_path=str(outbox))
    finally:
        adopt(Identity())
    assert len(killed) == 1
    deadline = time.monotonic() + 120  # the driver's figures, repeated while it lives, and those of a worker that ended
    while (figures := scraped(how.name)).get(("ray_altdiffusion_train_step", None, None)) != STEPS:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert figures["ray_altdiffusion_train_restarts", None, None] >= 1
    assert 0 < figures["ray_altdiffusion_train_goodput_ratio", None, None] < 1
    assert figures["ray_altdiffusion_train_checkpoint_seconds_count", None, None] >= 1
    assert ref.name == f"align/{checkpoints.step_name(STEPS)}"
    points = [json.loads(line) for line in outbox.read_text().splitlines()]
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


def last_words(relay: Any) -> None:
    reporter = RelayReporter(relay)
    reporter.warning("rank 1 is stalled")
    reporter.flush()
    os._exit(75)


def test_the_last_message_of_a_worker_that_ends_itself_arrives(ray_here: None) -> None:
    import ray

    relay = ray.remote(num_cpus=0)(MessageRelay).remote()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(max_retries=0)(last_words).remote(relay))
    recorder = Recorder()
    with RelayReader(lambda: ray.get(relay.take.remote()), recorder):
        pass
    assert recorder.warnings == ["rank 1 is stalled"]


DRIVER = """
import json, sys
from altdiffusion.config import from_dict
from altdiffusion.errors import Resumable
from altdiffusion.execution import cluster
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.launch_ray import train
cluster.connect(num_cpus=2)
try:
    train(from_dict(TrainConfig, json.loads(sys.argv[2])), sys.argv[1])
except Resumable as stopped:
    cluster.shutdown()
    sys.exit(f"stopped: {stopped}")
"""


@pytest.mark.parametrize("blocked", [set(), {signal.SIGTERM, signal.SIGINT}])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_received_is_handled_while_the_run_waits(
    how: signal.Signals, blocked: set[signal.Signals]
) -> None:
    """The kernel may choose any thread of a process; Python's handler runs in the main one, once that wakes."""
    notice, handled = PreemptionNotice(), threading.Event()

    def fit() -> bool:
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), how)
        for _ in range(300):
            if notice.level == STOP:
                return True
            handled.wait(0.1)
        return False

    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # as a program leaves them that starts this one
    try:
        with on_stop_signals(notice):
            assert launch_ray._in_thread(fit)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_job_that_is_asked_to_stop_leaves_a_checkpoint_of_that_step(tmp_path: Path, how: signal.Signals) -> None:
    """As `ray job stop` and Ctrl-C do it: a signal to the driver. No checkpoint is due; nothing is repeated."""
    lake = make_lake(tmp_path)
    changes = {
        "steps": 2000, "checkpoint_every": 100_000, "log_every": 10,
        "workers": {"count": 2, "max_failures": 3}, "optimizer": {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4},
    }  # fmt: skip
    settings = config(lake, **changes)
    with ray_folder() as folder:
        path = os.pathsep.join(str(ROOT / name) for name in ("platform", "."))
        env = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, "-c", DRIVER, lake, json.dumps(resolved(settings))]
        driver = subprocess.Popen(
            command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=take_sigint,
        )  # fmt: skip
        assert driver.stdout is not None
        seen = next((line for line in driver.stdout if "/2000 steps" in line), "")
        driver.send_signal(how)
        output, errors = driver.communicate(timeout=300)
    assert seen and driver.returncode == 1, output + errors
    (step,) = checkpoints.steps(lake, "align")
    assert 10 <= step < 2000
    assert f"stopped: run align: was asked to stop; the checkpoint of step {step} is there" in errors
    assert checkpoints.verify(checkpoints.open_step(lake, "align", step).folder) == []
    (start,) = goodput.read(lake, "align")  # the workers were not started again
    assert start.step == step
