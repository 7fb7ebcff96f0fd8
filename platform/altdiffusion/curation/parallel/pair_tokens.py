"""Candidates -> pairs: each pair once, as token ids of both encoders.

A hash exchange like that of links (`links.dedup`): every unit of the first step wrote one shard a bucket of English
texts, so the unit of bucket b reads shard b of each and decides alone. Of equal pairs the first in the order of the
config's corpora stays. The last buckets can be kept for measuring: no English text is on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.curation.assets import check_folder
from altdiffusion.curation.config import IdsConfig
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer, token_ids
from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import open_version, unit_id
from altdiffusion.records import PARALLEL
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Unit, UnitRecord


def plan_pairs(candidates: Version, buckets: int, chosen: range, *models: str) -> list[Unit]:
    """One unit for each of the chosen buckets; `models` name the tokenizers."""
    if len(candidates.shards) % buckets:
        raise AltDiffusionError(
            candidates.ref.short,
            f"has {len(candidates.shards)} shards, which are not {buckets} buckets a unit",
            "give the number of buckets that it was written with",
        )
    units = []
    for index, bucket in enumerate(chosen):
        reads = [*(shard.sha256 for shard in candidates.shards[bucket::buckets]), *models]
        payload = {
            "version": str(candidates.ref), "bucket": bucket, "buckets": buckets,
            "input_digest": files.sha256_hex(files.canonical_json(reads)),
        }  # fmt: skip
        units.append(Unit(id=unit_id(index, *reads), index=index, payload=payload))
    return units


class EncodePairsWork:
    """Works one bucket."""

    def __init__(self, *, lake: str, dataset: str, ids: IdsConfig) -> None:
        self.lake, self.dataset, self.ids = lake, dataset, ids
        self._versions: dict[str, Version] = {}
        self._student: Any = None
        self._teacher: Any = None

    def setup(self) -> None:
        """Loads the tokenizers."""
        ids = self.ids
        self._student, self._teacher = (
            open_tokenizer(check_folder(folder, digest), folder)
            for folder, digest in (
                (ids.tokenizer, ids.tokenizer_digest),
                (ids.teacher_tokenizer, ids.teacher_tokenizer_digest),
            )
        )

    def run(self, unit: Unit) -> UnitRecord:
        """Drops what is there twice, encodes and writes the rest."""
        version = open_version(self.lake, unit, self._versions)
        bucket, buckets = int(unit.payload["bucket"]), int(unit.payload["buckets"])
        shards = range(bucket, len(version.shards), buckets)
        table = pa.concat_tables([PARALLEL.empty_table(), *(version.read_shard(shard) for shard in shards)])
        numbers = pa.array(np.arange(table.num_rows))
        numbered = table.select(["caption", "translation", "language"]).append_column("row", numbers)
        firsts = numbered.group_by(["caption", "translation", "language"]).aggregate([("row", "min")])["row_min"]
        first = np.zeros(table.num_rows, bool)
        first[firsts.to_numpy()] = True
        gone, kept = table.filter(pa.array(~first)), table.filter(pa.array(first))
        ids = {
            "token_ids": token_ids(self._student, kept["translation"].to_pylist(), self.ids.max_length),
            "teacher_ids": token_ids(self._teacher, kept["caption"].to_pylist(), self.ids.teacher_max_length),
        }
        rejects = rejects_table(
            unit.id,
            row=np.flatnonzero(~first),
            reason=["duplicate"] * gone.num_rows,
            sample_id=gone["sample_id"],
            language=gone["language"],
        )
        accepted = pa.table([ids.get(f.name, kept[f.name]) for f in PARALLEL], schema=PARALLEL)
        dataset = Lake(self.lake).dataset(self.dataset)
        return finish_unit(dataset, unit, rows_in=table.num_rows, accepted=[accepted], rejects=rejects)
