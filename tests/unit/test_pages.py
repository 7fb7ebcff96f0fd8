"""Columns of byte strings of one length: what is read from the pages is what Arrow reads, or it is refused."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.storage import pages, shards
from altdiffusion.storage.shard_reader import ShardReader


def write(values: list[bytes | None], **settings: Any) -> tuple[io.BytesIO, Any]:
    """Write a file with one column `latent`, and the column's chunk."""
    sink = io.BytesIO()
    given = {"use_dictionary": False, "compression": "none", "write_page_checksum": True, "data_page_version": "2.0"}
    pq.write_table(pa.table({"latent": pa.array(values, pa.binary())}), sink, **(given | settings))
    return sink, pq.read_metadata(sink).row_group(0).column(0)


@given(data=st.data(), rows=st.integers(1, 200), length=st.integers(1, 300), batch=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_values_are_those_that_arrow_reads(data: st.DataObject, rows: int, length: int, batch: int) -> None:
    values = np.random.default_rng(rows).bytes(rows * length)
    file, chunk = write(
        [values[row * length : (row + 1) * length] for row in range(rows)], data_page_size=512, write_batch_size=batch
    )
    whole = pages.read_equal(file, chunk)
    assert whole.tobytes() == values
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1)))), dtype=np.int64)
    assert np.array_equal(pages.read_equal(file, chunk, chosen), whole[chosen])
    with tempfile.TemporaryFile(buffering=0) as local:  # which is read page by page
        local.write(file.getvalue())
        assert np.array_equal(pages.read_equal(local, chunk), whole)
        assert np.array_equal(pages.read_equal(local, chunk, chosen), whole[chosen])


@pytest.mark.parametrize("local", [True, False])
def test_a_damaged_page_is_found_by_those_who_want_a_row_of_it(local: bool) -> None:
    memory, chunk = write([bytes([row]) * 100 for row in range(40)], data_page_size=1000, write_batch_size=10)
    memory.getbuffer()[memory.getvalue().index(bytes([25]) * 100)] ^= 1
    with tempfile.TemporaryFile(buffering=0) as disk:
        disk.write(memory.getvalue())
        file = disk if local else memory
        found = pages.read_equal(file, chunk, np.array([3, 39]))
        assert found[:, 0].tolist() == [3, 39]
        for rows in (None, np.array([3, 20, 39])):
            with pytest.raises(ValueError, match="checksum"):
                pages.read_equal(file, chunk, rows)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([b"aa", b"bbb"], {}, "does not hold 2 items in every row"),
        ([b"aaa", b"b", b"cc"], {}, "does not hold 3 items in every row"),
        ([b"aa", b"bb", b"ccc", b"ddd"], {"data_page_size": 1, "write_batch_size": 2}, "does not hold 2 items"),
        ([b"aa", None], {}, "holds nulls"),
        ([b"aa", b"bb"], {"data_page_version": "1.0"}, "page header that cannot be read"),
        ([b"aa", b"bb"], {"write_page_checksum": False}, "checksum"),
    ],
)
def test_what_is_not_of_one_length_or_form_is_refused(
    values: list[bytes | None], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pages.read_equal(*write(values, **settings))


def test_a_file_that_ends_early_is_refused() -> None:
    file, chunk = write([bytes(100)] * 10)
    file.truncate(500)
    with pytest.raises(ValueError, match="bytes early"):
        pages.read_equal(file, chunk)


@pytest.mark.parametrize("settings", [{"compression": "zstd"}, {"use_dictionary": True}])
def test_columns_of_another_form_are_read_by_arrow(tmp_path: Path, settings: dict[str, Any]) -> None:
    file, chunk = write([b"aa", b"bb", b"cc"], **settings)
    assert not pages.is_readable(chunk)
    path = tmp_path / "shard.parquet"
    path.write_bytes(file.getvalue())
    reader = ShardReader(str(path), path.stat().st_size)
    assert reader.read(0, ["latent"], equal="latent", rows=np.array([0, 2]))["latent"].to_pylist() == [b"aa", b"cc"]
    reader.close()


@pytest.mark.parametrize("local", [True, False])
def test_a_shard_as_it_is_written_is_read_in_the_fast_way(tmp_path: Path, local: bool) -> None:
    values = [bytes([row]) * 50_000 for row in range(100)]
    table = pa.table({"latent": pa.array(values, pa.binary()), "width": pa.array(range(100), pa.int32())})
    folder = str(tmp_path) if local else f"memory://{tmp_path.name}"
    info = shards.write_table(folder, table, 64)
    reader = ShardReader(shards.shard_uri(folder, info.sha256), info.bytes)
    found = reader.read(1, ["latent", "width"], equal="latent", rows=np.array([1, 35]))
    assert pa.types.is_fixed_size_binary(found["latent"].type)
    assert found["latent"].to_pylist() == [values[65], values[99]]
    assert found["width"].to_pylist() == [65, 99]
    reader.close()
