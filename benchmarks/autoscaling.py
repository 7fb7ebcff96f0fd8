"""Generation on nodes that come and go: 0 to 2 nodes under load, a node killed, and 0 again, with nothing lost.

    python -m benchmarks.autoscaling --out DIR [--images 440] [--steps 16]
    python -m benchmarks.autoscaling --out DIR --again       the table and the plot of the trace in DIR

The generate job runs on a Ray cluster of this machine whose autoscaler starts and stops nodes (benchmarks.fake_nodes),
with the demo's base model. Every half second the nodes, the workers and the finished images are counted. Once two
workers have drawn for a while, one node is killed. The same job with one worker in one process, undisturbed, must then
have made the same version. DIR gets trace.json and autoscaling.png; the lakes are in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from altdiffusion.storage.dataset import Lake
from benchmarks.autoscaling_trace import Draw, Sample, Trace, draw_plot, figures
from benchmarks.fake_nodes import FakeCluster, fake_cluster
from benchmarks.logged_draws import drawn_again, read_log
from demo import base

MAX_NODES = 2
SAMPLE_EVERY_S = 0.5
BACK_TIMEOUT_S = 120.0
GENERATIONS = "generations"
THINGS = ("apple", "bear", "bus", "cat", "clock", "fish", "guitar", "house", "moon", "rose")
COLOURS = ("red", "green", "blue", "white", "black", "old", "small", "round")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A job in a folder.

    Args:
        images: number of images.
        kill_after_s: how long two workers draw before a node is killed.
        timeout_s: longest time of the job.
    """

    folder: Path
    images: int
    steps: int
    batch_rows: int
    idle_s: float
    kill_after_s: float
    timeout_s: float

    def write(self) -> Path:
        """Write model, prompts and config; return the config's file."""
        model, _ = base.unpack(self.folder / "models")
        rows = (
            {
                "id": f"p{number}", "language": "en", "seed": number, "width": 32, "height": 32,
                "prompt": f"{COLOURS[number % len(COLOURS)]} {THINGS[number % len(THINGS)]}",
            }
            for number in range(self.images)
        )  # fmt: skip
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "lake": str(self.folder / "cluster"),
            "generate": {
                "model": {"folder": str(model)}, "prompts": {"file": str(prompts)}, "steps": self.steps,
                "guidance_scale": 3.0, "batch_rows": self.batch_rows,
            },
            "workers": {"min": 1, "max": MAX_NODES, "cpus": 1},
        }  # fmt: skip
        file = self.folder / "generate.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML too
        return file


@dataclass
class Watch:
    """The samples of a running job, and the kill of one of its nodes."""

    cluster: FakeCluster
    lake: Path
    kill_after_s: float
    began: float = field(default_factory=time.time)
    samples: list[Sample] = field(default_factory=list)
    killed_s: float | None = None
    _both_since: float | None = None

    def look(self) -> Sample:
        """Take a sample."""
        sample = Sample(
            s=round(time.time() - self.began, 2),
            nodes=len(self.cluster.nodes()),
            workers=len(self.cluster.workers()),
            images=finished_images(self.lake),
        )
        self.samples.append(sample)
        return sample

    def follow(self, job: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Take samples until the job ends, and kill a node on the way.

        Raises:
            TimeoutError: the job does not end.
        """
        while job.poll() is None:
            sample = self.look()
            if sample.s > timeout_s:
                raise TimeoutError(f"the job runs for {sample.s:.0f} s; last sample: {sample}")
            if self.killed_s is None:
                self._kill_when_due(sample)
            time.sleep(SAMPLE_EVERY_S)

    def follow_until_empty(self) -> None:
        """Take samples until the last node is gone.

        Raises:
            TimeoutError: nodes stay.
        """
        ends = time.monotonic() + BACK_TIMEOUT_S
        while self.look().nodes:
            if time.monotonic() > ends:
                raise TimeoutError(f"{self.samples[-1].nodes} nodes are left {BACK_TIMEOUT_S:g} s after the job's end")
            time.sleep(SAMPLE_EVERY_S)

    def _kill_when_due(self, sample: Sample) -> None:
        """Kill the node of a drawing worker once two have drawn for long enough."""
        workers = self.cluster.workers()
        drawing = {batch.worker for batch in read_log(self.lake)} & workers.keys()
        if len(drawing) < MAX_NODES:
            return
        self._both_since = self._both_since or sample.s
        if sample.s - self._both_since < self.kill_after_s:
            return
        self.killed_s = time.time() - self.began
        self.cluster.kill(workers[min(drawing)])


def finished_images(lake: Path) -> int:
    """Return the number of images that a stop would not lose: recorded ones, and those in spill files."""
    folder = lake / "datasets" / GENERATIONS
    spilled = [path.name.split(",") for path in folder.glob("spill/*.parquet")]  # first: a record replaces them
    records = [json.loads(path.read_bytes()) for path in folder.glob("ledger/*/*.json")]
    recorded = {record["unit_id"] for record in records}
    inside = sum(int(rows) for unit_id, rows, _ in spilled if unit_id not in recorded)
    return inside + sum(shard["rows"] for record in records for shard in record["shards"])


def run(setup: Setup) -> Trace:
    """Run the job on the cluster and undisturbed, and return the trace of the former.

    Raises:
        RuntimeError: something was lost or drawn too often, or the job did not end well.
    """
    config = setup.write()
    lake = setup.folder / "cluster"
    with fake_cluster(MAX_NODES, setup.idle_s) as cluster:
        watch = Watch(cluster, lake, setup.kill_after_s)
        words = [sys.executable, "-m", "benchmarks.logged_draws", "--config", str(config)]
        job = subprocess.Popen([*words, f"execution.address={cluster.address}"], stdout=sys.stderr)
        try:
            watch.follow(job, setup.timeout_s)
        finally:
            job.kill()
            job.wait()
        ended_s = time.time() - watch.began
        watch.follow_until_empty()
    if job.returncode:
        raise RuntimeError(f"the job ended with status {job.returncode}")
    if watch.killed_s is None:
        raise RuntimeError("the job was done before two workers had drawn for long enough: give more --images")
    alone = setup.folder / "alone"
    subprocess.run(
        [
            *(sys.executable, "-m", "jobs.generate", "--config", str(config), f"lake={alone}"),
            *("workers.max=1", "execution.backend=inline"),
        ],
        stdout=sys.stderr,
        check=True,
    )
    batches = read_log(lake)
    trace = Trace(
        max_nodes=MAX_NODES,
        images=setup.images,
        batch_rows=setup.batch_rows,
        killed_s=round(watch.killed_s, 2),
        ended_s=round(ended_s, 2),
        drawn_again=drawn_again(batches),
        digest=digest(lake),
        samples=watch.samples,
        draws=[
            Draw(s=round(batch.time - watch.began, 2), worker=batch.worker, images=len(batch.keys)) for batch in batches
        ],
    )
    check(trace, expected=digest(alone))
    return trace


def digest(lake: Path) -> str:
    """Return the digest of the images' newest version."""
    return Lake(str(lake)).version(GENERATIONS).ref.digest


def check(trace: Trace, expected: str) -> None:
    """Refuse a run that lost something, or drew more again than the batch that the killed worker had not kept yet.

    Args:
        expected: digest of the undisturbed run.

    Raises:
        RuntimeError: with what is wrong.
    """
    drawn = sum(draw.images for draw in trace.draws) - trace.drawn_again
    problems = [
        f"the version is {trace.digest[:12]}, undisturbed {expected[:12]}" if trace.digest != expected else "",
        f"{drawn} of {trace.images} images are in the log" if drawn != trace.images else "",
        f"{trace.drawn_again} images were drawn again" if trace.drawn_again > trace.batch_rows else "",
        "there were never as many nodes as allowed"
        if max(sample.nodes for sample in trace.samples) != trace.max_nodes
        else "",
    ]
    if any(problems):
        raise RuntimeError("; ".join(filter(None, problems)))


def report(trace: Trace, out: Path) -> None:
    """Print the table and draw the plot."""
    print("| | |\n|---|---|")
    for name, value in figures(trace):
        print(f"| {name} | {value} |")
    draw_plot(trace, out / "autoscaling.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "altdiffusion-autoscaling")
    parser.add_argument("--again", action="store_true", help="read the trace in --out, run nothing")
    parser.add_argument("--images", type=int, default=440)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds until an idle node is stopped")
    parser.add_argument("--kill-after", type=float, default=4.0, help="seconds that two workers draw before the kill")
    parser.add_argument("--timeout", type=float, default=900.0, help="longest time of the job in seconds")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "trace.json"
    if not given.again:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(
                folder=Path(folder),
                images=given.images,
                steps=given.steps,
                batch_rows=given.batch_rows,
                idle_s=given.idle,
                kill_after_s=given.kill_after,
                timeout_s=given.timeout,
            )
            run(setup).save(file)
    report(Trace.load(file), given.out)


if __name__ == "__main__":
    main()
