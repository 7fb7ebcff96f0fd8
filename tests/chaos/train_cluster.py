"""Training on a Ray cluster of two nodes that are lost, return, or get a preemption notice, or of which one stalls.
test_train_chaos starts it.

    python -m tests.chaos.train_cluster --lake LAKE --event {loss,drain,stall}

loss   a node is killed, the run goes on with one worker; a new node comes, and it goes on with two
drain  Ray gets a preemption notice for a node that is then lost: what was computed until the notice is not done again
stall  a worker is stopped, not killed: it is named, and all are started again
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ray.cluster_utils import Cluster

from altdiffusion.training.checkpoints import format as checkpoints
from tests.training_lake import config

GIVE_UP_S = 1200.0
STEPS = {"loss": 400, "drain": 600, "stall": 300}
STALL_TIMEOUT_S = 15
DRIVER = """
import json, sys
from altdiffusion.config import from_dict
from altdiffusion.execution import cluster
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.launch_ray import train
cluster.connect(sys.argv[1])
print(train(from_dict(TrainConfig, json.loads(sys.argv[3])), sys.argv[2]))
"""


def settings(lake: str, event: str) -> dict[str, object]:
    """Return the run's config as a tree."""
    return {
        "run": "align", "stage": "alignment", "trainable": "all", "start": {"base": f"{lake}/models/base"},
        "datasets": [{"name": "latents"}], "seed": 5, "key": "chaos", "steps": STEPS[event],
        "global_batch": 8, "micro_batch": 2,
        "caption_drop": 0.25, "optimizer": {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4, "ema_decay": 0.9},
        "order": {"chunk_rows": 16, "window_chunks": 4}, "keep_last": 1000, "log_every": 10,
        "checkpoint_every": 100_000 if event == "drain" else 10,
        "workers": {
            "count": 2, "min_count": 1, "grow_check_s": 3, "max_failures": 5, "stall_timeout_s": STALL_TIMEOUT_S
        },
    }  # fmt: skip


class Harness:
    """Two nodes of one CPU each next to a head without any, and the training job."""

    def __init__(self, lake: str, event: str) -> None:
        self.lake = lake
        self.ends = time.monotonic() + GIVE_UP_S
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        tree = json.dumps(settings(lake, event))
        self.job = subprocess.Popen([sys.executable, "-c", DRIVER, self.cluster.address, lake, tree])

    def until(self, what: str, done: Callable[[], bool]) -> None:
        while not done():
            if self.job.poll() is not None:
                raise RuntimeError(f"the job ended with {self.job.returncode} before {what}")
            if time.monotonic() > self.ends:
                raise TimeoutError(what)
            time.sleep(0.2)
        print(f"{what}: steps {self.steps()[-1:]}", flush=True)

    def steps(self) -> list[int]:
        return checkpoints.steps(self.lake, "align")

    def writers(self, step: int) -> int:
        names = os.listdir(Path(self.lake) / "checkpoints" / "align" / checkpoints.step_name(step))
        return max(1, *(int(name[-17:-12]) for name in names if "-of-" in name), 1)


def loss(harness: Harness) -> None:
    harness.until("two workers train", lambda: len(harness.steps()) >= 2)
    before = harness.steps()[-1]
    harness.cluster.remove_node(harness.nodes[1], allow_graceful=False)
    harness.until("one worker goes on", lambda: any(s > before and harness.writers(s) == 1 for s in harness.steps()))
    at = harness.steps()[-1]
    harness.nodes[1] = harness.cluster.add_node(num_cpus=1)
    harness.until("two workers go on", lambda: any(s > at and harness.writers(s) == 2 for s in harness.steps()))


def drain(harness: Harness) -> None:
    beats = Path(harness.lake) / "checkpoints" / "align" / "journal"

    def step() -> int:
        return max((json.loads(path.read_text())["step"] for path in beats.glob("0*.json")), default=0)

    harness.until("two workers train", lambda: step() >= 20)
    node = harness.nodes[1]
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--address", harness.cluster.address, "--node-id", node.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", "15"], check=True)
    harness.until("a checkpoint is there at once", lambda: len(harness.steps()) >= 1)
    harness.cluster.remove_node(node, allow_graceful=False)


def stall(harness: Harness) -> None:
    harness.until("two workers train", lambda: len(harness.steps()) >= 2)
    run = Path(harness.lake) / "checkpoints" / "align"
    sign = json.loads((run / "ranks" / "00001.json").read_text())
    os.kill(sign["process"], signal.SIGSTOP)
    stopped = time.monotonic()
    print(f"stopped: rank 1 (process {sign['process']})", flush=True)
    harness.until("the workers are started again", lambda: len(list((run / "journal").glob("0*.json"))) == 2)
    print(f"after {time.monotonic() - stopped:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True)
    parser.add_argument("--event", choices=sorted(STEPS), required=True)
    options = parser.parse_args()
    config(options.lake)
    harness = Harness(options.lake, options.event)
    try:
        {"loss": loss, "drain": drain, "stall": stall}[options.event](harness)
        status = harness.job.wait(timeout=max(1.0, harness.ends - time.monotonic()))
        if status:
            raise RuntimeError(f"the job ended with {status}")
    finally:
        if harness.job.poll() is None:
            harness.job.kill()
        harness.cluster.shutdown()
    print(json.dumps({"steps": harness.steps(), "writers": [harness.writers(step) for step in harness.steps()]}))


if __name__ == "__main__":
    main()
