"""What select reads and spends where its filters by number leave little over: two passes against one over everything.

    python -m benchmarks.pushdown [--rows 200000]

One synthetic part in LAION's joined shape with an aesthetic column, snappy, in row groups of 16,384 rows; the language
model is left out (every caption is believed). `one pass` reads and normalises every column and then filters; `two
passes` is what select does. In `sorted` the rows are in the order of their aesthetic score, so that the statistics of
most row groups decide; in `shuffled` they do not, and a row group is read whole if one of its rows is a candidate.
CPU seconds are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links.filters import judge, number_filters
from altdiffusion.curation.links.reader import UnitReader, fetch_footer, parse_footer
from altdiffusion.curation.links.select_work import SelectWork
from altdiffusion.curation.links.source_columns import SCORES, SIZES, TEXTS, numbers, texts

SETTINGS = {
    "Aesthetics V1 (> 7)": SelectConfig(similarity_above=0.28, aesthetic_above=7.0),
    "aesthetic > 9": SelectConfig(similarity_above=0.28, aesthetic_above=9.0),
    "size and scores only": SelectConfig(min_side=512, similarity_above=0.28),
    "no filter": SelectConfig(min_side=None, max_aspect=None, punsafe_below=None, pwatermark_below=None),
}


class Counting:
    """A file that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.bytes = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Believer:
    """Replaces the language model."""

    def identify(self, captions: pa.Array, _: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        language = pa.repeat(pa.scalar("en"), len(captions))
        return language, pa.repeat(pa.scalar(0.9, pa.float32()), len(captions)), language


def table(rows: int) -> pa.Table:
    draws = np.random.default_rng(0)
    words = ["red", "bicycle", "old", "house", "village", "wall", "garden", "summer", "morning", "picture", "photo"]
    captions = [" ".join(words[i] for i in row) for row in draws.integers(0, len(words), (rows, 10))]
    urls = [
        f"https://cdn{a % 97}.example/{b:x}/{c:x}/picture-{i}.jpg"
        for i, (a, b, c) in enumerate(draws.integers(1 << 40, size=(rows, 3)))
    ]
    return pa.table(
        {
            "URL": urls,
            "TEXT": captions,
            "WIDTH": draws.integers(100, 2000, rows).astype(np.int32),
            "HEIGHT": draws.integers(100, 2000, rows).astype(np.int32),
            "similarity": draws.normal(0.31, 0.03, rows),
            "hash": [mmh3.hash64(url + text)[0] for url, text in zip(urls, captions, strict=True)],
            "pwatermark": draws.random(rows).astype(np.float32),
            "punsafe": (draws.random(rows) ** 4).astype(np.float32),
            "aesthetic": draws.normal(5.2, 1.0, rows).astype(np.float32),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    plain = table(arguments.rows)
    print(f"{'':34}{'rows left':>10}{'MB: one, two passes':>22}{'ratio':>8}{'us/row: one, two':>20}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for order, part in (("shuffled", plain), ("sorted", plain.sort_by("aesthetic"))):
            path = Path(folder) / f"{order}.parquet"
            pq.write_table(part, path, row_group_size=16_384, compression="snappy")
            for name, select in SETTINGS.items():
                compare(path, f"{name}, {order}", select, arguments.rows)


def compare(path: Path, name: str, select: SelectConfig, rows: int) -> None:
    source = SourceConfig(name="s", uri=str(path), preset="laion-aesthetic")
    work = SelectWork(lake="memory://unused", dataset="x", source=source, select=select, language=LanguageConfig())
    work._identifier = Believer()  # type: ignore[assignment]
    with path.open("rb") as file:
        footer = parse_footer(*fetch_footer(file, str(path)), str(path))

    def one(part: UnitReader) -> int:
        kept = 0
        for _, given in part.batches(part.groups, ["sample_id", *TEXTS, *SIZES, *SCORES]):
            count = len(given["url"])
            columns = {**numbers(given, count), **texts(given, count, source)}
            codes = judge(number_filters(select), columns, count)
            kept += work.decide_rows(columns, codes, "unit", np.arange(count)).accepted.num_rows
        return kept

    def two(part: UnitReader) -> int:
        return sum(piece.accepted.num_rows for piece in work.decide(part, "unit"))

    bytes_read, seconds, kept = {}, {one: [], two: []}, {}
    for _ in range(5):
        for how in (one, two):
            file = Counting(path)
            start = time.process_time()
            kept[how] = how(UnitReader(str(path), file, footer, source, 0, rows))
            seconds[how].append(time.process_time() - start)
            bytes_read[how] = file.bytes
    assert kept[one] == kept[two]
    mb = [bytes_read[how] / 1e6 for how in (one, two)]
    us = [statistics.median(seconds[how]) / rows * 1e6 for how in (one, two)]
    print(
        f"{name:34}{kept[two]:>10,}{mb[0]:>14.1f}{mb[1]:>8.1f}{mb[1] / mb[0]:>8.2f}"
        f"{us[0]:>12.2f}{us[1]:>8.2f}{us[1] / us[0]:>8.2f}"
    )


if __name__ == "__main__":
    main()
