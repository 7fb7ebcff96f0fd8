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
from altdiffusion.training.reporting.event_files import EventFiles
from altdiffusion.training.reporting.peak import Peak
from altdiffusion.training.reporting.progress import COLUMNS, Progress
from altdiffusion.training.reporting.run_metrics import RunMetrics


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
        self._exported = RunMetrics(config)
        self._peak: Peak | None = None

    def progress(self, progress: Progress) -> None:
        if progress.peak != self._peak:
            self._peak = progress.peak
            self._print(f"[{self._name}] MFU is of {self._peak.tflops:.3g} TFLOP/s per worker ({self._peak.name})")
        self._print(progress.line(self._name, _columns()))
        if progress.step == progress.steps:
            self._print(f"[{self._name}] {progress.goodput.line()}")
        self._keep(progress.step, progress.metrics())
        self._exported.progress(progress)

    def measured(self, measured: Measured) -> None:
        self._print(f"[{self._name}] {measured.text}")
        self._keep(measured.step, measured.metrics)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._print(f"[{self._name}] wrote {checkpoint.ref.short}")
        self._exported.checkpoint(checkpoint.step)

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
