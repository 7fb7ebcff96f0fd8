"""Goodput of a small training under a kill per minute, against what the simulator predicts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from altdiffusion.training.estimate.goodput import FaultModel, simulate
from altdiffusion.training.faults import goodput
from tests.training_lake import make_lake

ROOT = Path(__file__).resolve().parents[2]
KILL_EVERY_S = 60.0
STEP_S = 0.25
"""Each step waits until it has taken so long, so that other load on the machine hardly changes it."""
EVERY = 20
STEPS = 700
SCRIPT = """
import sys, time
import torch
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.update.trainer import Trainer
from tests.training_lake import Recorder, config
torch.set_num_threads(1)
lake, steps, every, step_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
update = Trainer.update
def paced(self, samples):
    began = time.monotonic()
    loss = update(self, samples)
    time.sleep(max(0.0, began + step_s - time.monotonic()))
    return loss
Trainer.update = paced
run_local(config(lake, steps=steps, checkpoint_every=every, log_every=1), lake, reporter=Recorder())
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_goodput_under_a_kill_every_minute_is_the_simulators(tmp_path: Path) -> None:
    """Kill a run at fixed times and start it again at once, until the same command has ended it.

    Given to the simulator are the mean step and stall, and the times from each kill to the next step, as measured. What
    it adds are the steps that are done again, and how the kills fall between checkpoints.
    """
    lake = make_lake(tmp_path)
    command = [sys.executable, "-c", SCRIPT, lake, str(STEPS), str(EVERY), str(STEP_S)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "OMP_NUM_THREADS": "1"}

    def until_it_steps(process: subprocess.Popen[bytes], number: int) -> float:
        while True:
            starts = goodput.read(lake, "align")
            if len(starts) > number and starts[number].step > starts[number].first:
                return time.monotonic()
            assert process.poll() is None, "the run ended before its first step"
            time.sleep(0.02)

    process = subprocess.Popen(command, env=environment)
    began = until_it_steps(process, 0)
    restarts: list[float] = []
    while True:
        killed = began + (len(restarts) + 1) * KILL_EVERY_S
        while process.poll() is None and time.monotonic() < killed:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(command, env=environment)
        restarts.append(until_it_steps(process, len(restarts) + 1) - killed)
    total_s = time.monotonic() - began
    assert process.returncode == 0 and restarts

    starts = goodput.read(lake, "align")
    done = sum(start.step - start.first for start in starts)
    step_s = sum(start.busy_s for start in starts) / done
    stall_s = sum(start.stall_s for start in starts) / max(1, done // EVERY)
    model = FaultModel(
        useful_s=STEPS * step_s,
        interval_s=EVERY * step_s,
        stall_s=stall_s,
        write_s=stall_s,
        restart_s=sum(restarts) / len(restarts),
        mean_s=KILL_EVERY_S,
    )
    predicted = simulate(model, periodic=True, restarts_s=restarts)
    found = {
        "measured": round(model.useful_s / total_s, 4), "predicted": round(predicted.goodput, 4),
        "kills": len(restarts), "predicted_kills": predicted.failures, "steps_again": done - STEPS,
        "step_s": round(step_s, 4), "stall_s": round(stall_s, 4), "restart_s": round(model.restart_s, 2),
    }  # fmt: skip
    print(f"note: {json.dumps(found)}")
    assert abs(found["measured"] - found["predicted"]) < 0.02, found
