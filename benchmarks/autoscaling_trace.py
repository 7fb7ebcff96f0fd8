"""What a run on autoscaled nodes looked like over time, its figures, and its plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altdiffusion.execution.progress import duration

RATE_WINDOW_S = 10.0
"""Length of the time over which a rate of the plot is taken."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The state at one moment."""

    s: float
    """Seconds since the job was started."""
    nodes: int
    """Nodes that Ray sees alive, without the head."""
    workers: int
    """Processes of the pool."""
    images: int
    """Finished images: recorded ones, and those in spill files."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A batch that was drawn; a trace has them in the order of time."""

    s: float
    """Seconds since the job was started."""
    worker: int
    """Process id."""
    images: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run of the job."""

    max_nodes: int
    images: int
    """Number of images that the job was to draw."""
    batch_rows: int
    killed_s: float
    """When the node was killed."""
    ended_s: float
    """When the job's process ended."""
    drawn_again: int
    """Images that were drawn although they had been drawn before."""
    digest: str
    """Digest of the generations, which is that of the undisturbed run."""
    samples: list[Sample]
    draws: list[Draw]

    def save(self, file: Path) -> None:
        """Write the trace as JSON, with one list per field of the samples and draws."""
        tree = asdict(self)
        for name in ("samples", "draws"):
            tree[name] = {key: [one[key] for one in tree[name]] for key in tree[name][0]}
        file.write_text(json.dumps(tree, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, file: Path) -> Trace:
        """Return the trace that `save` wrote."""
        tree = json.loads(file.read_text())
        for name, kind in (("samples", Sample), ("draws", Draw)):
            columns = tree[name]
            tree[name] = [kind(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        return cls(**tree)

    def first(self, condition: Callable[[Sample], bool]) -> float:
        """Return when a condition first held.

        Raises:
            ValueError: it never did.
        """
        for sample in self.samples:
            if condition(sample):
                return sample.s
        raise ValueError("the trace has no such sample")

    def starts(self) -> dict[int, float]:
        """Return when each worker had drawn its first batch, by process id, in this order."""
        first: dict[int, float] = {}
        for draw in self.draws:
            first.setdefault(draw.worker, draw.s)
        return first

    def rate_between(self, start_s: float, end_s: float) -> float:
        """Return the images per second that the workers of one moment drew after it, until another one."""
        there = {worker for worker, s in self.starts().items() if s <= start_s}
        drawn = sum(draw.images for draw in self.draws if draw.worker in there and start_s < draw.s <= end_s)
        return drawn / (end_s - start_s)

    def rates(self) -> NDArray[np.float64]:
        """Return the rate at which images were finished around each sample, in images per second."""
        s = np.array([sample.s for sample in self.samples])
        images = np.array([sample.images for sample in self.samples], np.float64)
        after, before = s + RATE_WINDOW_S / 2, s - RATE_WINDOW_S / 2
        gained = np.interp(after, s, images) - np.interp(before, s, images)
        return gained / RATE_WINDOW_S


def figures(trace: Trace) -> list[tuple[str, str]]:
    """Return the rows of the table: what was measured, and the value."""
    started = list(trace.starts().values())
    back = trace.first(lambda sample: sample.s > trace.ended_s and sample.nodes == 0)
    gone = trace.first(lambda sample: sample.s > trace.killed_s and sample.nodes < trace.max_nodes)
    replaced = trace.first(lambda sample: sample.s > gone and sample.nodes == trace.max_nodes)
    return [
        ("images", f"{trace.images:,}"),
        ("first node after", seconds(trace.first(lambda sample: sample.nodes >= 1))),
        (f"{trace.max_nodes} nodes after", seconds(trace.first(lambda sample: sample.nodes >= trace.max_nodes))),
        ("images/s, one worker", f"{trace.rate_between(started[0], started[1]):.2f}"),
        ("images/s, two workers until the kill", f"{trace.rate_between(started[1], trace.killed_s):.2f}"),
        ("a node killed after", seconds(trace.killed_s)),
        ("Ray has seen that, after the kill", seconds(gone - trace.killed_s)),
        ("its replacement is there, after the kill", seconds(replaced - trace.killed_s)),
        ("images drawn twice", f"{trace.drawn_again:,} (batches have {trace.batch_rows:,})"),
        ("job done after", seconds(trace.ended_s)),
        ("0 nodes, after the job's end", seconds(back - trace.ended_s)),
        ("digest", f"{trace.digest[:12]}, that of one worker inline"),
    ]


def seconds(value: float) -> str:
    """Return a time for the table."""
    return f"{value:.0f} s" if value < 100 else duration(value)


def draw_plot(trace: Trace, file: Path) -> None:
    """Draw nodes and images per second over time into an image file, whose suffix names the format."""
    from matplotlib.figure import Figure

    s = [sample.s for sample in trace.samples]
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    above.fill_between(s, [sample.nodes for sample in trace.samples], step="post", color="#4477aa", alpha=0.25, lw=0)
    above.step(s, [sample.nodes for sample in trace.samples], where="post", color="#4477aa", lw=1.8, label="nodes")
    workers = [sample.workers for sample in trace.samples]
    above.step(s, workers, where="post", color="#222222", lw=1.2, ls=(0, (2, 1.5)), label="workers of the pool")
    above.set_ylabel("number")
    above.set_ylim(0, trace.max_nodes + 0.9)
    above.set_yticks(range(trace.max_nodes + 1))
    below.plot(s, trace.rates(), color="#228833", lw=1.8)
    below.set_ylabel(f"images per second\n(over {RATE_WINDOW_S:g} s)")
    below.set_xlabel("seconds since the job was started")
    below.set_ylim(bottom=0)
    below.set_xlim(0, 1.02 * s[-1])
    for axes in (above, below):
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axvline(trace.killed_s, color="#cc3311", lw=1.3, label="a node is killed")
        axes.axvline(trace.ended_s, color="#888888", lw=1.3, ls="--", label="the job is done")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(file)
