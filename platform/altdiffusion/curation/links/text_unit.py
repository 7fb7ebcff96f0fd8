"""Rows of a unit of a text part, as `reader.UnitReader` gives those of a Parquet part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.links.filters import Bounds
from altdiffusion.curation.links.row_groups import RowGroup, Rows, overlapping
from altdiffusion.curation.links.text_parts import TextBlocks, TextIndex


class TextUnitReader:
    """Rows `start` to `stop` of a text part."""

    def __init__(self, uri: str, index: TextIndex, config: SourceConfig, start: int, stop: int) -> None:
        self.uri, self.rows = uri, stop - start
        self._blocks = TextBlocks(uri, index, config)
        self.columns: Mapping[str, str] = self._blocks.columns
        self.groups = overlapping(index.block_rows, start, stop)

    def bounds(self, group: RowGroup) -> dict[str, Bounds]:
        """Return nothing: a text file has no statistics."""
        return {}

    def batches(self, groups: Sequence[RowGroup], names: Sequence[str]) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Return the rows of these blocks that belong to the unit; as `UnitReader.batches`."""
        wanted = [name for name in names if name in self.columns]
        for group in groups:
            rows = np.arange(group.first, group.first + group.rows)
            low, high = np.searchsorted(rows, [0, self.rows])
            columns = self._blocks.read(group.number, wanted) if wanted else {}
            yield (
                rows[low:high],
                {name: pa.chunked_array([column.slice(low, high - low)]) for name, column in columns.items()},
            )
