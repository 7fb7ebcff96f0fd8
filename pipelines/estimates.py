"""What a dry run assumes of the work of a pool, and how long it takes then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, at_least, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkEstimateConfig(Checked):
    """What `--dry-run` and `altdiffusion plan` need to estimate hours and terabytes. It changes nothing of the run."""

    rows: Annotated[int | None, at_least(1)] = operational(None)
    """Rows that the job works on; null leaves the estimate out."""
    rows_per_s_per_worker: Annotated[float | None, positive("null leaves the hours out")] = operational(None)
    """Rows that one worker completes per second; null leaves the hours out."""
    stored_kb: Annotated[float, at_least(0)] = operational(0.0)
    """Kilobytes that the job stores per row."""
    source: str = operational("assumed")
    """Where these figures come from; `altdiffusion plan` prints it."""

    @property
    def stored_tb(self) -> float:
        """Terabytes that are stored."""
        return (self.rows or 0) * self.stored_kb / 1e9

    def hours(self, workers: int) -> float | None:
        """Return the hours that a number of workers takes, if rows and rate are given."""
        if self.rows is None or self.rows_per_s_per_worker is None:
            return None
        return self.rows / (self.rows_per_s_per_worker * workers) / 3600


def work_line(given: WorkEstimateConfig, workers: int) -> list[str]:
    """Return the cost of a job in one line, for people; none where its rows or its rate are not stated."""
    hours = given.hours(workers)
    if hours is None:
        return []
    return [
        f"hours       {given.rows:,} rows: {hours:,.1f} h by {workers:,} workers, {given.stored_tb:,.2f} TB stored "
        f"(assumed: {given.rows_per_s_per_worker:g} rows/s per worker; {given.source})"
    ]
