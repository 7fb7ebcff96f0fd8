"""From a run's datasets to the parts of its order."""

from __future__ import annotations

from collections.abc import Sequence

from altdiffusion.storage.dataset import Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order import Order, Part


def parts_of(config: TrainConfig, versions: Sequence[Version]) -> list[list[Version]]:
    """The versions of each part: one a dataset where they have weights; else all in one, row after row."""
    weighted = config.datasets[0].weight is not None
    return [[version] for version in versions] if weighted else [list(versions)]


def make_order(config: TrainConfig, versions: Sequence[Version]) -> Order:
    """The order of a run: which row of which part stands at each position. Needs manifests only."""
    parts = [
        Part(
            digest="+".join(version.ref.digest for version in group),
            rows=sum(version.rows for version in group),
            weight=config.datasets[number].weight or 1.0,
        )
        for number, group in enumerate(parts_of(config, versions))
    ]
    return Order(
        parts,
        seed=config.seed,
        global_batch=config.global_batch,
        chunk_rows=config.order.chunk_rows,
        window_chunks=config.order.window_chunks,
    )
