"""Training by several ranks of one machine: a process each, joined by gloo."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import multiprocessing

from altdiffusion.training.config import TrainConfig
from altdiffusion.training.loop.loop import train_loop
from altdiffusion.training.run.resolve import resolve
from tests.training_lake import Recorder


def train_by_two(lake: str, store: Path, *runs: TrainConfig) -> None:
    """Train the runs one after the other by two ranks.

    Args:
        store: a file that does not exist, in which the ranks find each other.
    """
    multiprocessing.spawn(_rank, args=(lake, str(store), runs), nprocs=2)


def _rank(rank: int, lake: str, store: str, runs: tuple[TrainConfig, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for settings in runs:
        train_loop(resolve(settings, lake), reporter=Recorder(), rank=rank, world=2)
    torch.distributed.destroy_process_group()
