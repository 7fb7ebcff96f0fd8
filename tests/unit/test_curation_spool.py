"""The spool: filled in any order, by many threads, read in input order, a bounded part at a time."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from altdiffusion.curation.download.spill import Spool


def filled(path: Path, rows: int) -> Spool:
    """Row n: refused where n % 5 == 0, else an image of n % 97 + 1 bytes."""
    spool = Spool(str(path), rows)
    order = list(range(rows))
    random.Random(1).shuffle(order)

    def fill(part: list[int]) -> None:
        for row in part:
            if row % 5 == 0:
                spool.refuse(row, f"reason {row % 3}", f"détail {row}" if row % 2 else "")
            else:
                spool.describe(row, sha256=bytes([row % 256]) * 32, phash=-row, verdict=row % 4, profiled=row % 7)
                spool.store(row, bytes([row % 256]) * (row % 97 + 1), (row, row + 1, row + 2, row + 3))

    threads = [threading.Thread(target=fill, args=(order[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.finish()
    return spool


def test_images_come_out_in_order_in_parts_of_bounded_size(tmp_path: Path) -> None:
    spool = filled(tmp_path / "spool", 1000)
    seen: list[int] = []
    for rows in spool.stored(1000):
        images = spool.images(rows).to_pylist()
        assert sum(map(len, images)) <= 1000 or len(rows) == 1
        assert images == [bytes([row % 256]) * (row % 97 + 1) for row in rows]
        assert (spool.column("phash", rows) == -rows).all() and (spool.column("verdict", rows) == rows % 4).all()
        assert (spool.column("original_height", rows) == rows + 3).all()
        assert bytes(spool.column("sha256", rows)[0]) == bytes([rows[0] % 256]) * 32
        seen += rows.tolist()
    assert seen == [row for row in range(1000) if row % 5]
    assert [len(rows) for rows in spool.stored(1)] == [1] * 800
    spool.close()


def test_refused_rows_have_their_reason_and_detail(tmp_path: Path) -> None:
    spool = filled(tmp_path / "spool", 100)
    rows, reasons, details = spool.refused()
    assert rows.tolist() == list(range(0, 100, 5))
    assert reasons.to_pylist() == [f"reason {row % 3}" for row in rows]
    assert details.to_pylist() == [f"détail {row}" if row % 2 else None for row in rows]
    spool.close()


def test_parts_are_cut_as_full_as_they_may_be(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 6)
    for row, size in enumerate((4, 4, 3, 9, 20, 1)):
        spool.store(row, bytes(size), (1, 1, 1, 1))
    spool.finish()
    assert [rows.tolist() for rows in spool.stored(11)] == [[0, 1, 2], [3], [4], [5]]
    spool.close()


def test_a_row_that_got_lost_and_a_file_that_was_cut_are_errors(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 2)
    spool.store(1, b"abc", (1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="1 of 2 rows have got lost"):
        spool.finish()
    os.truncate(tmp_path / "spool", 1)
    with pytest.raises(OSError, match="cut short"):
        spool.images(np.array([1]))
    spool.close()


def test_nothing_at_all(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 0)
    spool.finish()
    assert list(spool.stored(10)) == [] and spool.refused()[0].tolist() == []
    spool.close()
