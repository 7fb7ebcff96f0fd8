"""The head of a Ray cluster is lost with all that is on it: a new head and the same command give the same version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import generation_lake
from tests.integration.test_execution_ray import drop_ledger
from tests.ray_folder import ray_folder

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys, traceback
from ray.cluster_utils import Cluster
from altdiffusion.execution import cluster
from altdiffusion.execution.units import Pool
from tests import generation_lake as g
try:
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
    cluster.connect(head.address)
    g.generate(sys.argv[1], g.config(sys.argv[1]), backend="ray", pool=Pool(min_size=1, max_size=2))
    status = 0
except BaseException:
    print(traceback.format_exc(), flush=True)
    status = 1
os._exit(status)  # the cluster is ended with its folder
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_head_costs_the_units_in_flight(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path)
    expected = generation_lake.generate(lake, generation_lake.config(lake)).ref
    drop_ledger(lake)
    ledger = Path(lake) / "datasets" / "drawn" / "ledger"

    def records() -> int:
        return len(list(ledger.glob("*/0*.json")))

    def run(folder: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, lake], env=environment, start_new_session=True, stdout=subprocess.PIPE
        )

    with ray_folder() as folder:  # which ends every process of the cluster that is left
        job = run(folder)
        ends = time.monotonic() + 200
        while records() < 2:
            assert job.poll() is None and time.monotonic() < ends
            time.sleep(0.005)
        os.killpg(job.pid, signal.SIGKILL)  # driver, GCS and raylet are of one session
        job.communicate()
        lost = time.monotonic()
    done = records()
    assert done < 8
    with ray_folder() as folder:
        again = run(folder)
        printed, _ = again.communicate(timeout=300)
        assert again.returncode == 0, printed.decode()[-3000:]
    print(f"note: {done} of 8 units were done, the same command took {time.monotonic() - lost:.0f} s")
    assert generation_lake.generate(lake, generation_lake.config(lake)).ref == expected
