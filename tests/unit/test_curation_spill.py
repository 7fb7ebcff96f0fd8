"""The spill file: filled in any order, by many threads, read in input order, a bounded part at a time."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altdiffusion.curation.download.spill import SpillFile


def filled(path: Path, rows: int) -> SpillFile:
    """Return a filled file: row n is refused where n % 5 == 0, else it is an image of n % 97 + 1 bytes."""
    spill = SpillFile(str(path), rows)
    order = list(range(rows))
    random.Random(1).shuffle(order)

    def fill(part: list[int]) -> None:
        for row in part:
            if row % 5 == 0:
                spill.refuse(row, f"reason {row % 3}", f"détail {row}" if row % 2 else "")
            else:
                spill.store(
                    row,
                    bytes([row % 256]) * (row % 97 + 1),
                    sides=(row, row + 1, row + 2, row + 3),
                    sha256=bytes([row % 256]) * 32,
                    phash=-row,
                    verdict=row % 4,
                    profiled=row % 7,
                )

    threads = [threading.Thread(target=fill, args=(order[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spill.finish()
    return spill


NOTHING: dict[str, Any] = {"sides": (1, 1, 1, 1), "sha256": bytes(32), "phash": 0, "verdict": 0, "profiled": 0}


def test_images_come_out_in_order_in_parts_of_bounded_size(tmp_path: Path) -> None:
    spill = filled(tmp_path / "spill", 1000)
    seen: list[int] = []
    for rows in spill.stored(1000):
        images = spill.images(rows).to_pylist()
        assert sum(map(len, images)) <= 1000 or len(rows) == 1
        assert images == [bytes([row % 256]) * (row % 97 + 1) for row in rows]
        assert (spill.column("phash", rows) == -rows).all() and (spill.column("verdict", rows) == rows % 4).all()
        assert (spill.column("original_height", rows) == rows + 3).all()
        assert bytes(spill.column("sha256", rows)[0]) == bytes([rows[0] % 256]) * 32
        seen += rows.tolist()
    assert seen == [row for row in range(1000) if row % 5]
    assert [len(rows) for rows in spill.stored(1)] == [1] * 800
    spill.close()


def test_refused_rows_have_their_reason_and_detail(tmp_path: Path) -> None:
    spill = filled(tmp_path / "spill", 100)
    rows, reasons, details = spill.refused()
    assert rows.tolist() == list(range(0, 100, 5))
    assert reasons.to_pylist() == [f"reason {row % 3}" for row in rows]
    assert details.to_pylist() == [f"détail {row}" if row % 2 else None for row in rows]
    spill.close()


def test_parts_are_cut_as_full_as_they_may_be(tmp_path: Path) -> None:
    spill = SpillFile(str(tmp_path / "spill"), 6)
    for row, size in enumerate((4, 4, 3, 9, 20, 1)):
        spill.store(row, bytes(size), **NOTHING)
    spill.finish()
    assert [rows.tolist() for rows in spill.stored(11)] == [[0, 1, 2], [3], [4], [5]]
    spill.close()


def test_a_row_that_got_lost_and_a_file_that_was_cut_are_errors(tmp_path: Path) -> None:
    spill = SpillFile(str(tmp_path / "spill"), 2)
    spill.store(1, b"abc", **NOTHING)
    with pytest.raises(RuntimeError, match="1 of 2 rows were lost"):
        spill.finish()
    os.truncate(tmp_path / "spill", 1)
    with pytest.raises(OSError, match="cut short"):
        spill.images(np.array([1]))
    spill.close()


def test_nothing_at_all(tmp_path: Path) -> None:
    spill = SpillFile(str(tmp_path / "spill"), 0)
    spill.finish()
    assert list(spill.stored(10)) == [] and spill.refused()[0].tolist() == []
    spill.close()
