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
    images, rate = given.links * given.success, workers * given.links_per_s_per_worker
    fetched_tb, stored_tb = images * given.fetched_kb / 1e9, images * given.stored_kb / 1e9
    nodes = math.ceil(workers * cpus / given.node_cpus)
    return [
        f"download    {given.links:,} links: {fetched_tb:,.0f} TB fetched, {stored_tb:,.0f} TB stored; "
        f"{workers:,} workers on {nodes:,} nodes: {given.gigabits_per_s(workers):,.1f} Gbit/s, "
        f"{given.links / rate / 86400:,.1f} days "
        f"(assumed: {given.success:.0%} of links alive, {given.fetched_kb:g} KB fetched and {given.stored_kb:g} KB "
        f"stored per image, {given.links_per_s_per_worker:g} links/s per worker, {given.node_cpus} CPUs per node)"
    ]
