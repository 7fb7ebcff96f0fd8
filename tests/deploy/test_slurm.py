"""deploy/slurm on two real Slurm nodes: training stops before its time is over, and goes on by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from altdiffusion.training.checkpoints import format as checkpoints
from deploy.render import read_values, rendered
from tests.training_lake import make_lake

ROOT = Path(__file__).resolve().parents[2]
STEPS = 600
SPACES = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
has_slurm = os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged", "unshare", "ip")))


@pytest.fixture()
def folder() -> Iterator[Path]:
    """Give a folder outside of /tmp, which each node has for itself."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def lay_out(folder: Path) -> None:
    """Write the batch files for two nodes and this environment, a lake, a config and a token."""
    values = read_values()
    values["a100"] |= {"nodes": 2, "resources": {"CPU": 2, "GPU": 8, "memory": 10**9, "training": 8}}
    values["slurm"] |= {"partitions": {"curation": "gpu", "a100": "gpu"}, "venv": str(folder / "venv")}
    values["slurm"] |= {"spill": str(folder / "spill")}
    for path, text in rendered(values).items():
        if path.startswith("deploy/slurm/"):
            (folder / Path(path).name).write_text(text)
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/activate").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}/platform:{ROOT}\n"
        "export RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=200000000 OMP_NUM_THREADS=1 "
        "RAY_gcs_rpc_server_reconnect_timeout_s=10\n"
    )
    lake = make_lake(folder)
    config = {
        "lake": lake,
        "train": {
            "run": "align", "stage": "alignment", "trainable": "all", "start": {"base": f"{lake}/models/base"},
            "datasets": [{"name": "latents"}], "seed": 5, "key": "slurm", "steps": STEPS, "global_batch": 8,
            "micro_batch": 4, "optimizer": {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4, "ema_decay": 0.9},
            "order": {"chunk_rows": 16, "window_chunks": 4}, "checkpoint_every": 50, "log_every": 50,
            "workers": {"count": 2, "cpus": 1, "custom": {"training": 5}},
        },
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm, reason="needs root and Debian's slurm-wlm")
def test_training_stops_before_its_time_and_goes_on_by_itself(folder: Path) -> None:
    lay_out(folder)
    harness = [*SPACES, "bash", str(ROOT / "tests/deploy/slurm_nodes.sh"), str(folder / "slurm")]
    inside = [sys.executable, str(Path(__file__)), str(folder)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
    done = subprocess.run(
        [*harness, *inside], cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    output = "\n".join(path.read_text() for path in folder.glob("altdiffusion-train-*.out"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{output}"
    before, again = output.split(": stopped with 143; the same command is queued again\n")
    assert before.count(": asked to stop\n") == 1 and f"{STEPS}/{STEPS}" not in before
    (stopped,) = re.findall(r"the checkpoint of step (\d+) is there", before)
    assert int(re.findall(rf"(\d+)/{STEPS} steps", again)[0]) - int(stopped) <= 50, "nothing is done twice"
    assert checkpoints.steps(str(folder / "lake"), "align")[-1] == STEPS
    assert not list((folder / "spill").glob("*"))


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(folder: Path) -> int:
    """Do what a user does, on the login node: submit; the time limit's signal comes after the first checkpoint."""
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
    job = slurm("sbatch", "--parsable", str(folder / "train.sbatch"), str(folder / "train.yaml"))
    ends = time.monotonic() + 800
    is_asked = False
    while time.monotonic() < ends:
        state = slurm("squeue", "-h", "-j", job, "-t", "all", "-o", "%T")
        if not is_asked and checkpoints.steps(str(folder / "lake"), "align"):
            slurm("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@780 does before the time limit
            is_asked = True
        if state in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED", ""):
            print(state)
            return state != "COMPLETED"
        time.sleep(0.5)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
