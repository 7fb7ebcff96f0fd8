"""A shard on a local disk is written while it is encoded: the same bytes, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.hashed_file import write_by_digest


def table(rows: int) -> pa.Table:
    draw = np.random.default_rng(0)
    images = pa.array([draw.bytes(1000) for _ in range(rows)], pa.binary())
    return pa.table({"image": images, "caption": ["a picture"] * rows, "language": ["en"] * rows})


@pytest.mark.parametrize("rows", [0, 1, 2500])
def test_the_file_holds_what_is_encoded_in_memory(rows: int, tmp_path: Path) -> None:
    info = shards.write_table(str(tmp_path / "shards"), table(rows))
    data = shards.encode(table(rows))
    (file,) = (tmp_path / "shards").iterdir()
    assert file.read_bytes() == data and file.name == f"{info.sha256}.parquet"
    assert (info.sha256, info.bytes, info.rows) == (files.sha256_hex(data), len(data), rows)


def test_a_shard_that_is_there_stays_and_a_torn_one_is_replaced(tmp_path: Path) -> None:
    info = shards.write_table(str(tmp_path), table(10))
    path = tmp_path / f"{info.sha256}.parquet"
    before = path.stat().st_ino
    assert shards.write_table(str(tmp_path), table(10)) == info and path.stat().st_ino == before
    path.write_bytes(b"PAR1")
    assert shards.write_table(str(tmp_path), table(10)) == info and path.read_bytes() == shards.encode(table(10))
    assert os.listdir(tmp_path) == [path.name]


def test_a_disk_that_is_full_half_way_leaves_nothing_and_names_the_folder(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(AltDiffusionError, match=rf"{tmp_path}.*No space left"):
        write_by_digest(str(tmp_path), write, lambda sha256: str(tmp_path / sha256))
    assert os.listdir(tmp_path) == []


def test_a_link_in_place_of_the_shard_is_refused(tmp_path: Path) -> None:
    info = shards.write_table(str(tmp_path / "shards"), table(10))
    path = tmp_path / "shards" / f"{info.sha256}.parquet"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AltDiffusionError, match="link"):
        shards.write_table(str(tmp_path / "shards"), table(10))
    assert sorted(os.listdir(tmp_path / "shards")) == [path.name]
