"""What a dry run assumes of a download, and what it costs then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, at_least, between, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadEstimateConfig(Checked):
    """What `--dry-run` needs to estimate terabytes, gigabits per second and days. It changes nothing of the run."""

    links: Annotated[int | None, at_least(1)] = operational(None)
    """Links that are downloaded; null leaves the estimate out."""
    success: Annotated[float, between(0.0, 1.0)] = operational(0.8)
    """Share of the links that still give an image."""
    fetched_kb: Annotated[float, positive()] = operational(100.0)
    """Kilobytes of an average image as fetched."""
    stored_kb: Annotated[float, positive()] = operational(80.0)
    """Kilobytes of an average image as stored; `dataset report` prints those of an earlier download."""
    links_per_s_per_worker: Annotated[float, positive()] = operational(100.0)
    """Links that one worker settles per second, as an earlier run's log or benchmarks.download printed."""
    node_cpus: Annotated[int, at_least(1)] = operational(64)
    """CPUs of one node."""

    rows: Annotated[int | None, at_least(1)] = operational(None)
    """Rows of all sources together; null leaves the selection of links out."""
    rows_per_s_per_worker: Annotated[float, positive()] = operational(75_000.0)
    """Rows that one worker of `select_workers` selects per second, with their language (benchmarks.select_rows)."""
    link_rot_per_month: Annotated[float, between(0.0, 1.0)] = operational(0.01)
    """Share of the links that dies per month; `altdiffusion plan` shows what is left by year."""
    source: str = operational("assumed")
    """Where these figures come from; `altdiffusion plan` prints it."""

    @property
    def fetched_tb(self) -> float:
        """Terabytes that are fetched."""
        return (self.links or 0) * self.success * self.fetched_kb / 1e9

    @property
    def stored_tb(self) -> float:
        """Terabytes of images that are stored."""
        return (self.links or 0) * self.success * self.stored_kb / 1e9

    def hours(self, workers: int) -> float:
        """Return the hours of the download by a number of workers."""
        return (self.links or 0) / (workers * self.links_per_s_per_worker) / 3600

    def select_hours(self, workers: int) -> float:
        """Return the hours in which a number of workers selects links from all rows."""
        return (self.rows or 0) / (workers * self.rows_per_s_per_worker) / 3600

    def gigabits_per_s(self, workers: int) -> float:
        """Return what a number of workers fetches, in Gbit/s."""
        return workers * self.links_per_s_per_worker * self.success * self.fetched_kb * 8 / 1e6


def download_line(given: DownloadEstimateConfig, workers: int, cpus: float) -> list[str]:
    """Return the cost of a download in one line, for people; none where the links are not stated.

    Args:
        workers: of the pool, at most.
        cpus: of one worker.
    """
    if given.links is None:
        return []
    nodes = math.ceil(workers * cpus / given.node_cpus)
    return [
        f"download    {given.links:,} links: {given.fetched_tb:,.0f} TB fetched, {given.stored_tb:,.0f} TB stored; "
        f"{workers:,} workers on {nodes:,} nodes: {given.gigabits_per_s(workers):,.1f} Gbit/s, "
        f"{given.hours(workers) / 24:,.1f} days "
        f"(assumed: {given.success:.0%} of links alive, {given.fetched_kb:g} KB fetched and {given.stored_kb:g} KB "
        f"stored per image, {given.links_per_s_per_worker:g} links/s per worker, {given.node_cpus} CPUs per node)"
    ]
