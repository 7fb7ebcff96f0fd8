"""A curation on a Ray cluster of three nodes of one machine, under SIGKILL.

    python -m tests.chaos.ray_cluster --seed N --units N --lake DIR --config FILE [key=value ...]

Starts a head without CPUs and two nodes, runs `jobs.curate` against it as a process of its own, and kills at random
moments (when the ledgers hold a random number of the run's units) a worker process, a whole node with its workers,
and the job itself, each at least once. A killed node comes back, a killed job is run again by the same command.
Prints one JSON line: what was killed, in order.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

KINDS = ("worker", "node", "job")
GIVE_UP_S = 420.0


def records(lake: Path) -> int:
    """Return how many units are recorded so far, in all ledgers."""
    return sum(1 for _ in lake.glob("datasets/*/ledger/*/*.json"))


def workers() -> list[psutil.Process]:
    """Return the processes that work on units: the pool's actors, not Ray's own."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        if line[0].startswith("ray::") and ("MapWorker" in line[0] or "UnitActor" in line[0]):
            found.append(process)
    return found


class Chaos:
    """The cluster, the job, and the kills."""

    def __init__(self, lake: Path, command: list[str], seed: int) -> None:
        self.lake, self.command = lake, command
        self.draw = random.Random(seed)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
        self.nodes = [self._add_node() for _ in range(2)]
        self.killed: list[str] = []

    def _add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, f"execution.address={self.cluster.address}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_for(self, job: subprocess.Popen[bytes], wanted: int, ends: float) -> bool:
        """Wait until the ledgers hold this many records; return False if the job ended before."""
        while job.poll() is None and records(self.lake) < wanted:
            if time.monotonic() > ends:
                raise TimeoutError(f"{records(self.lake)} records, {wanted} wanted; killed so far: {self.killed}")
            time.sleep(0.02)
        time.sleep(self.draw.random() * 0.4)
        return job.poll() is None

    def kill(self, kind: str, job: subprocess.Popen[bytes]) -> None:
        if kind == "job":
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
        elif kind == "worker":
            while not (alive := workers()) and job.poll() is None:  # between two pools there is none
                time.sleep(0.02)
            if not alive:
                return
            self.draw.choice(alive).send_signal(signal.SIGKILL)
        else:
            victim = self.draw.randrange(len(self.nodes))
            self.cluster.remove_node(self.nodes[victim], allow_graceful=False)
            self.nodes[victim] = self._add_node()
        self.killed.append(kind)

    def run(self, units: int) -> None:
        """Kill four times within the first 80 % of the units' records, then run to the end."""
        ends = time.monotonic() + GIVE_UP_S
        job = self.start()
        plan = [*KINDS, self.draw.choice(KINDS)]
        self.draw.shuffle(plan)
        moments = sorted(self.draw.sample(range(units * 4 // 5), len(plan)))
        for kind, moment in zip(plan, moments, strict=True):
            if not self.wait_for(job, moment, ends):
                break
            self.kill(kind, job)
            if job.poll() is not None:
                job = self.start()
        while True:
            _, errors = job.communicate(timeout=max(1.0, ends - time.monotonic()))
            if job.returncode == 0:
                return
            self.killed.append(f"ended with {job.returncode}: {errors.decode()[-300:]}")
            if len(self.killed) > 12:
                raise RuntimeError(f"the job does not finish: {self.killed}")
            job = self.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--units", type=int, required=True, help="how many the whole run has")
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    logging.disable(logging.WARNING)
    command = [sys.executable, "-m", "jobs.curate", "--config", options.config, f"lake={options.lake}"]
    chaos = Chaos(options.lake, [*command, *options.overrides], options.seed)
    try:
        chaos.run(options.units)
    finally:
        chaos.cluster.shutdown()
    print(json.dumps({"killed": chaos.killed}))


if __name__ == "__main__":
    main()
