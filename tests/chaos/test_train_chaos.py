"""Training on a Ray cluster that loses nodes, with and without notice, and gets them back: one process's weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion.config import from_dict
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.faults import goodput
from altdiffusion.training.launch_local import run_local
from tests.chaos.train_cluster import STEPS, settings
from tests.ray_folder import ray_folder
from tests.training_lake import Recorder, make_lake

ROOT = Path(__file__).parents[2]


def trained(lake: str, event: str) -> dict[str, Any]:
    """Return the steps of the checkpoints, how many workers wrote each, and what was printed."""
    with ray_folder() as folder:
        env = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.train_cluster", "--lake", lake, "--event", event],
            cwd=ROOT,
            env={**os.environ, **env, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=1300,
            check=False,
        )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"printed": done.stdout}


def assert_like_one_process(lake: str, event: str) -> None:
    torch.set_num_threads(1)
    tree = settings(lake, event) | {"run": "alone", "micro_batch": 4, "workers": {}}
    alone = run_local(from_dict(TrainConfig, tree), lake, reporter=Recorder())
    together = checkpoints.open_step(lake, "align", STEPS[event])
    for name in (checkpoints.UNET, checkpoints.EMA):
        one, other = alone.tensors(name), together.tensors(name)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_a_node_is_lost_and_another_comes(tmp_path: Path) -> None:
    lake = make_lake(tmp_path)
    found = trained(lake, "loss")
    writers = [writers for at, writers in enumerate(found["writers"]) if at == 0 or found["writers"][at - 1] != writers]
    assert writers == [2, 1, 2]
    assert found["steps"] == list(range(10, STEPS["loss"] + 1, 10))
    assert_like_one_process(lake, "loss")


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_a_node_with_a_preemption_notice_costs_no_step_before_it(tmp_path: Path) -> None:
    lake = make_lake(tmp_path)
    found = trained(lake, "drain")
    just_in_time, last = found["steps"]
    assert 20 <= just_in_time < last == STEPS["drain"]
    assert found["writers"][0] == 2
    starts = goodput.read(lake, "align")
    assert [start.first for start in starts][:2] == [0, just_in_time]
    assert_like_one_process(lake, "drain")


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_a_stalled_worker_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    lake = make_lake(tmp_path)
    found = trained(lake, "stall")
    stopped = re.search(r"stopped: rank 1 \(process (\d+)\)", found["printed"])
    assert stopped
    assert f"(process {stopped[1]}) has been in step" in found["printed"]
    assert found["steps"] == list(range(10, STEPS["stall"] + 1, 10))
    assert found["writers"][-1] == 2
    assert_like_one_process(lake, "stall")
