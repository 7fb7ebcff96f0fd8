"""Candidates -> pairs: each pair once, as token ids of both encoders.

A hash exchange like that of links (`links.dedup`): every unit of the first step wrote one shard per bucket of English
texts, so the unit of bucket b reads shard b of each and decides alone. Of equal pairs the first in the order of the
config's corpora stays. The last buckets can be kept for measuring: no English text is on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.curation.config import IdsConfig
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer, token_ids
from altdiffusion.curation.rejects import DUPLICATE, rejected
from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.records import PARALLEL
from altdiffusion.storage.ledger import UnitRecord


class EncodePairsWork(RangeWork):
    """The work on one bucket."""

    def __init__(self, *, lake: str, dataset: str, ids: IdsConfig) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.ids = ids
        self._student: Any = None
        self._teacher: Any = None

    def setup(self) -> None:
        """Load the tokenizers."""
        ids = self.ids
        self._student, self._teacher = (
            open_tokenizer(check_folder(folder, digest), folder)
            for folder, digest in (
                (ids.tokenizer, ids.tokenizer_digest),
                (ids.teacher_tokenizer, ids.teacher_tokenizer_digest),
            )
        )

    def run(self, unit: Unit) -> UnitRecord:
        """Drop what is there twice, encode and write the rest."""
        version, shards = self.version_of(unit), self.bucket_of(unit)
        table = pa.concat_tables([PARALLEL.empty_table(), *(version.read_shard(shard) for shard in shards)])
        numbers = pa.array(np.arange(table.num_rows))
        numbered = table.select(["caption", "translation", "language"]).append_column("row", numbers)
        firsts = numbered.group_by(["caption", "translation", "language"]).aggregate([("row", "min")])["row_min"]
        first = np.zeros(table.num_rows, bool)
        first[firsts.to_numpy()] = True
        kept = table.filter(pa.array(first))
        ids = {
            "token_ids": token_ids(self._student, kept["translation"].to_pylist(), self.ids.max_length),
            "teacher_ids": token_ids(self._teacher, kept["caption"].to_pylist(), self.ids.teacher_max_length),
        }
        accepted = pa.table([ids.get(f.name, kept[f.name]) for f in PARALLEL], schema=PARALLEL)
        rejects = rejected(unit.id, table, np.flatnonzero(~first), DUPLICATE)
        return finish_unit(self.output, unit, rows_in=table.num_rows, accepted=[accepted], rejects=[rejects])
