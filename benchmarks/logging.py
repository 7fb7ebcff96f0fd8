"""The speed of training with logging against without, on a CPU: at least 0.99.

    python -m benchmarks.logging [--pairs 9] [--block 40] [--log-every 10] [--tracking-uri URI]

One trainer (a small UNet of Stable Diffusion 2.1's blocks, K/V-256) takes blocks of steps in pairs: one block logs as
a training does, its 16 metrics every `--log-every` steps into the outbox that the shipping thread of this process sends
to MLflow; the other logs nothing. The order in a pair is turned round every time. MLflow is by default a database in a
lake of its own, which this process writes itself: a server would take that work off it.

Printed are the medians over the pairs of the ratio of speeds, with an interval of at least 95 % that assumes no
distribution: by wall-clock time of the steps, and by CPU time of the whole process, which includes what the thread
ships after the block. Exit status 1 if the upper end of an interval is below 0.99.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox, OutboxReader
from benchmarks.intervals import interval
from benchmarks.training import Case, Contender, ours, small

LEAST = 0.99
NAMES = [f"train/metric_{number}" for number in range(16)]


class Blocks:
    """Blocks of steps of one trainer, some of which log."""

    def __init__(self, contender: Contender, outbox: MetricOutbox, steps: int, log_every: int) -> None:
        self._contender = contender
        self._outbox = outbox
        self._steps = steps
        self._log_every = log_every
        self._step = 0

    def seconds(self, logs: bool) -> tuple[float, float]:
        """Return the wall-clock seconds of the steps, and the CPU seconds until everything is shipped."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self._steps):
            self._contender.step()
            self._step += 1
            if logs and self._step % self._log_every == 0:
                self._outbox.append(step=self._step, metrics=dict.fromkeys(NAMES, 1 / self._step))
        wall = time.perf_counter() - wall
        while OutboxReader(self._outbox.path).read() is not None:
            time.sleep(0.05)
        return wall, time.process_time() - cpu


def main() -> int:
    """Run the benchmark, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--block", type=int, default=40, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: a database in a temporary lake)")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    contender = ours(small(), Case(trainable="kv", resolution=256, batch=4), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as lake:
        run = JobRun.open(
            job="train", name="speed", fingerprint="0" * 64, config={}, lake=lake, tracking_uri=arguments.tracking_uri
        )
        with run:
            outbox = MetricOutbox(run.metrics_path)
            run.ship(outbox.path)
            blocks = Blocks(contender, outbox, arguments.block, arguments.log_every)
            blocks.seconds(True), blocks.seconds(False)  # the first ones do not count
            ratios: list[tuple[float, float]] = []
            for pair in range(arguments.pairs):
                found = {logs: blocks.seconds(logs) for logs in ((True, False) if pair % 2 else (False, True))}
                ratios.append((found[False][0] / found[True][0], found[False][1] / found[True][1]))
    passed = True
    for name, values in zip(("wall-clock time", "CPU time"), zip(*ratios, strict=True), strict=True):
        low, high = interval(values)
        passed = passed and high >= LEAST
        print(f"{name:<16} {statistics.median(values):.4f}  [{low:.4f}, {high:.4f}]  of the speed without logging")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
