"""The hook that measures the run, keeps its journal and reports."""

from __future__ import annotations

from dataclasses import replace

from altdiffusion.training.faults.goodput import Journal
from altdiffusion.training.loop.hooks import Hook, Step
from altdiffusion.training.loop.meter import Meter
from altdiffusion.training.loop.saver import Saver
from altdiffusion.training.reporting.reporter import Reporter


class ProgressReports(Hook):
    """Reports every `every` steps and after the last one.

    Args:
        meter: measures the steps of all ranks; all ranks have one.
        journal: notes what this start of the workers was worth; rank 0 alone has one, and it alone reports.
    """

    def __init__(self, every: int, meter: Meter, saver: Saver, journal: Journal | None, reporter: Reporter) -> None:
        self._every, self._meter, self._saver = every, meter, saver
        self._journal, self._reporter = journal, reporter

    def on_step(self, step: Step) -> None:
        self._meter.add(step.loss, step.samples)
        if self._journal is not None:
            self._journal.beat(step.number, stall_s=self._saver.stall_s)
        if step.number % self._every and not step.last:
            return
        progress = self._meter.close(self._saver.stall_s)
        if self._journal is not None:
            goodput = self._journal.note(step.number, stall_s=self._saver.stall_s, finished=step.last)
            self._reporter.progress(replace(progress, goodput=goodput))

    def on_end(self, step: Step) -> None:
        if self._journal is not None and not step.last:
            self._journal.note(step.number, stall_s=self._saver.stall_s)
