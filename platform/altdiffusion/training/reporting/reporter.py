"""What a run reports while it continues. The loop knows this protocol and no tracker."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from altdiffusion.lineage.outbox import MetricOutbox
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.faults.goodput import NO_GOODPUT, Goodput
from altdiffusion.training.reporting.event_files import EventFiles
from altdiffusion.training.reporting.peak import Peak

COLUMNS = 100
"""Width of a progress line where the terminal is not narrower."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a run after some steps; averages are over the steps since the last report of this process."""

    step: int
    steps: int
    loss: float
    """Mean over all samples of those steps."""
    grad_norm: float
    """L2 norm over all that is trained, in the last step."""
    lr: float
    samples_per_second: float
    samples_per_second_per_worker: float
    mfu: float
    """Model FLOPs utilisation: operations that the steps needed, divided by the workers' peak in that time."""
    peak: Peak
    """The peak of a worker, and where the figure comes from."""
    memory_bytes: int
    """Largest peak of any worker: of its GPU, else of its process."""
    data_wait: float
    """Share of the time that the workers waited for data, 0 to 1."""
    epochs: float
    """Samples seen so far per row of all datasets."""
    samples_seen: int
    skipped_steps: int
    """Steps whose loss or gradient was not finite, since the run began."""
    seconds_left: float
    checkpoint_stall: float = 0.0
    """Share of rank 0's time that training stopped for checkpoints, 0 to 1."""
    rows_name: str = "images"
    """What the samples are: images, or pairs of captions."""
    goodput: Goodput = NO_GOODPUT
    """Which share of the run's time was useful since it began, over all restarts."""

    def metrics(self) -> dict[str, float]:
        """Return names and values as they are logged."""
        return {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/lr": self.lr,
            f"train/{self.rows_name}_per_second": self.samples_per_second,
            f"train/{self.rows_name}_per_second_per_worker": self.samples_per_second_per_worker,
            "train/mfu": self.mfu,
            "train/peak_tflops": self.peak.tflops,
            "train/memory_gib": self.memory_bytes / 2**30,
            "train/data_wait": self.data_wait,
            "train/epochs": self.epochs,
            "train/samples_seen": float(self.samples_seen),
            "train/skipped_steps": float(self.skipped_steps),
            "train/checkpoint_stall": self.checkpoint_stall,
            "train/goodput": self.goodput.share,
            "train/wasted_steps": float(self.goodput.wasted_steps),
            "train/restarts": float(self.goodput.restarts),
        }

    def line(self, name: str, columns: int = COLUMNS) -> str:
        """Return one line for people; what matters least is left out where it would be longer than `columns`."""
        left = round(self.seconds_left)
        goodput = self.goodput
        parts = (  # as they are printed; the highest numbers are left out first
            (0, f"[{name}] {self.step}/{self.steps} steps"),
            (0, f"loss {self.loss:.4f}"),
            (1, f"{self.samples_per_second:,.1f} {self.rows_name}/s"),
            (4, f"MFU {self.mfu:.1%}"),
            (3, f"data wait {self.data_wait:.1%}"),
            (6, f"checkpoints {self.checkpoint_stall:.1%}"),
            (2, f"{self.skipped_steps} skipped" if self.skipped_steps else ""),
            (5, f"goodput {goodput.share:.1%}"),
            (2, f"{goodput.wasted_steps} repeated" if goodput.wasted_steps else ""),
            (7, f"{self.memory_bytes / 2**30:.2f} GiB"),
            (0, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"),
        )
        shown = [(rank, text) for rank, text in parts if text]
        while len("  ".join(text for _, text in shown)) > columns and max(rank for rank, _ in shown):
            shown.remove(max(shown, key=lambda part: part[0]))
        return "  ".join(text for _, text in shown)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured at a step besides the training itself."""

    step: int
    metrics: Mapping[str, float]
    """Names and values as they are logged."""
    text: str
    """The same for people, in one line."""


class Reporter(Protocol):
    """Receives what happens in a run; called on rank 0, except for the warning about a rank that stalls. It must not
    raise and, except for `flush`, must not block."""

    def progress(self, progress: Progress) -> None: ...

    def measured(self, measured: Measured) -> None: ...

    def checkpoint(self, checkpoint: Checkpoint) -> None: ...

    def warning(self, text: str) -> None: ...

    def flush(self) -> None:
        """Wait, some seconds at most, until every report has arrived: the process is about to end."""
        ...


def _columns() -> int:
    """Return the width that a line may have: that of a narrower terminal, else COLUMNS."""
    return min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns) if sys.stdout.isatty() else COLUMNS


class LineReporter:
    """Prints one line per report and appends the metrics to an outbox.

    Args:
        event_files: folder for TensorBoard's event files of all runs; None writes none.
    """

    def __init__(self, config: TrainConfig, outbox_path: str | None = None, event_files: str | None = None) -> None:
        self._name = f"train {config.run}"
        self._events = EventFiles(event_files, config.run) if event_files is not None else None
        self._outbox = MetricOutbox(outbox_path) if outbox_path is not None else None
        self._peak: Peak | None = None

    def progress(self, progress: Progress) -> None:
        if progress.peak != self._peak:
            self._peak = progress.peak
            self._print(f"[{self._name}] MFU is of {self._peak.tflops:.3g} TFLOP/s per worker ({self._peak.name})")
        self._print(progress.line(self._name, _columns()))
        if progress.step == progress.steps:
            self._print(f"[{self._name}] {progress.goodput.line()}")
        self._keep(progress.step, progress.metrics())

    def measured(self, measured: Measured) -> None:
        self._print(f"[{self._name}] {measured.text}")
        self._keep(measured.step, measured.metrics)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._print(f"[{self._name}] wrote {checkpoint.ref.short}")

    def warning(self, text: str) -> None:
        self._print(f"[{self._name}] WARNING: {text}")

    def flush(self) -> None:
        """Report what could not be logged; every line is written already."""
        if self._outbox is not None:
            self._outbox.report_losses()

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._outbox is not None:
            self._outbox.append(step=step, metrics=dict(metrics))
        if self._events is not None:
            try:
                self._events.write(step, metrics)
            except OSError as error:  # a full disk must not end the training
                self._events = None
                self.warning(f"event files are no longer written: {error}")

    def _print(self, text: str) -> None:
        print(text, flush=True, file=sys.stdout)
