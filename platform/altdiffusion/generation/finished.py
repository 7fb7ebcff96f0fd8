"""Images that are finished already, found by row key: in shards of the same dataset, and in spill files.

A row key covers all that decides an image, so it does not matter which version, config or unit an image was drawn for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.records import GENERATIONS
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import Dataset
from altdiffusion.storage.documents import DIGEST
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo

THREADS = 16
IMAGE_COLUMNS = ("row_key", "image", "image_sha256", "image_format", "vae_dtype", "perceptual_hash")
IMAGES = pa.schema([GENERATIONS.field(name) for name in IMAGE_COLUMNS])
"""What is taken over of a finished image; all other columns come from the prompts."""


@dataclass(frozen=True)
class Finished:
    """An index of finished images. It holds 12 bytes per image, and travels to the workers.

    A key is known by its first 8 bytes here; what is read is compared with the whole key.
    """

    folder_uri: str
    """Folder of the dataset's shards."""
    keys: NDArray[np.uint64]
    """[N] first 8 bytes of each key, ascending."""
    places: NDArray[np.int32]
    """[N] place of each key's file in `names`."""
    names: tuple[str, ...]
    """Names of the files: SHA-256 of shards, and names of spill files."""

    @classmethod
    def of(cls, dataset: Dataset) -> Finished:
        """Return the index of a dataset's shards and spill files; what cannot be read is left out and drawn again."""
        folder, spill = files.join(dataset.folder_uri, "shards"), Spill(dataset)
        there = [name.removesuffix(".parquet") for name in files.list_names(folder)]
        digests = [name for name in there if DIGEST.fullmatch(name)]
        spilled = spill.names()

        def keys_of(name: str) -> NDArray[np.uint64]:
            if name in spilled:
                table = spill.read(name, IMAGES)
            else:
                try:
                    table = read_columns(folder, ShardInfo(sha256=name, rows=0, bytes=0, row_group_rows=1), ["row_key"])
                except AltDiffusionError:  # a damaged shard, of which `dataset verify` reports
                    table = None
            if table is None or "row_key" not in table.column_names:
                return _short([])
            return _short(table["row_key"].drop_null().to_pylist())

        names = (*digests, *spilled)
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(keys_of, names))
        keys = np.concatenate([np.zeros(0, np.uint64), *found])
        places = np.repeat(np.arange(len(names), dtype=np.int32), [len(one) for one in found])
        keys, first = np.unique(keys, return_index=True)
        return cls(folder, keys, places[first], names)

    def tables(self, dataset: Dataset, keys: Sequence[str]) -> Iterator[pa.Table]:
        """Yield tables of `IMAGES` that together hold those of the wanted images that are finished."""
        short = _short(keys)
        at = np.minimum(np.searchsorted(self.keys, short), max(len(self.keys) - 1, 0))
        known = self.keys[at] == short if len(self.keys) else np.zeros(len(short), bool)
        for place in np.unique(self.places[at[known]]) if known.any() else ():
            name = self.names[place]
            try:
                if DIGEST.fullmatch(name):
                    yield shards.read_table(self.folder_uri, name, IMAGES)
                elif (table := Spill(dataset).read(name, IMAGES)) is not None:
                    yield table
            except AltDiffusionError:  # removed or damaged since the index was made: its images are drawn again
                continue


def _short(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Return the first 8 bytes of keys in hex; what is not such a key is left out."""
    return np.array([int(key[:16], 16) for key in keys if DIGEST.fullmatch(key)], np.uint64)
