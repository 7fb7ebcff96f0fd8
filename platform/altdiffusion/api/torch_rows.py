"""Rows of a version for PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.shard_rows import ShardRows

_BATCH_ROWS = 128


class Rows(IterableDataset):  # type: ignore[misc]
    """Rows as dicts, or what `transform` makes of them; ranks and workers of a DataLoader divide the shards."""

    def __init__(
        self,
        shards: Sequence[ShardRows],
        *,
        transform: Callable[[Mapping[str, Any]], Any] | None,
        rank: int | None,
        ranks: int | None,
    ) -> None:
        self._shards = shards
        self._transform = transform
        # Asked here: a DataLoader's worker process is not a rank itself.
        is_rank = torch.distributed.is_available() and torch.distributed.is_initialized()
        if (rank is None) != (ranks is None):
            raise AltDiffusionError("to_torch", "has one of rank and ranks", "give both, or neither")
        self._rank = rank if rank is not None else torch.distributed.get_rank() if is_rank else 0
        self._ranks = ranks if ranks is not None else torch.distributed.get_world_size() if is_rank else 1
        if not 0 <= self._rank < self._ranks:
            raise AltDiffusionError(
                f"to_torch, rank {self._rank} of {self._ranks}", "does not exist", "count ranks from 0 on"
            )

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for shard in self._shards[self._rank * workers + worker :: self._ranks * workers]:
            for batch in shard.batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield row if self._transform is None else self._transform(row)
