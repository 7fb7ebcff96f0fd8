"""A lake on an object store: the same digests as in a folder, and few requests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import fetched, files, shards
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.shard_reader import ShardReader
from altdiffusion.storage.verification import verify
from tests.s3_lake import NAMES, bucket, counts, curate, job, source


@pytest.fixture()
def s3(tmp_path: Path) -> Iterator[str]:
    """Serve an empty bucket; yield the address of the server."""
    with bucket(tmp_path / "s3") as address:
        yield address


def test_a_curation_on_s3_gives_the_digests_of_a_folder_with_few_requests(s3: str, tmp_path: Path) -> None:
    with source(tmp_path) as (site, table):
        local = curate(job(str(tmp_path / "lake"), site, table))
        remote = job("s3://bucket/lake", site, table)
        assert curate(remote) == local
        first = counts(s3)
        assert curate(remote) == local
        again = counts(s3) - first
        for name in NAMES:
            assert verify(Lake(remote.lake).dataset(name)).damages == ()
    verified = counts(s3) - first - again
    # 13 units leave 16 shards in three versions. A HEAD is a round trip for what the answer to a GET states as well.
    assert first.total() <= 155 and first["HEAD"] <= 6, first
    assert again.total() <= 90 and again["HEAD"] == 0, again
    assert verified.total() <= 70, verified


def test_a_shard_is_read_in_few_requests_and_its_size_is_checked(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "PIECE_BYTES", 1 << 20)
    values = [os.urandom(30_000) for _ in range(128)]
    table = pa.table({"latent": pa.array(values, pa.binary()), "width": range(128), "caption": ["x"] * 128})
    info = shards.write_table("s3://bucket", table, 64)
    uri = shards.shard_uri("s3://bucket", info.sha256)
    before = counts(s3)
    reader = ShardReader(uri, info.bytes)
    for group in (1, 0):
        found = reader.read(group, ["latent", "width"], equal="latent")
        assert found["latent"].to_pylist() == values[64 * group :][:64]
        assert found["width"].to_pylist() == list(range(64 * group, 64 * group + 64))
    narrow = reader.read(0, ["width"])
    assert narrow["width"].to_pylist() == list(range(64))
    # The end of the file; two row groups of 1.9 MB in pieces of 1 MiB; the narrow column.
    assert counts(s3) - before == Counter(GET=1 + 2 * 2 + 1)
    for size in (info.bytes - 1, info.bytes + 1, info.bytes + 10_000):
        with pytest.raises(ValueError, match=f"it has {info.bytes} bytes instead of {size}"):
            ShardReader(uri, size)
    with pytest.raises(FileNotFoundError):
        ShardReader("s3://bucket/missing.parquet", 10_000)


def test_two_writers_of_one_object(s3: str) -> None:
    uri = "s3://bucket/record.json"
    assert files.put_if_absent(uri, b"first")
    assert not files.put_if_absent(uri, b"second")
    assert files.read_bytes(uri) == b"first"


def test_objects_of_any_size_are_read_whole(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FIRST", 1000)
    bodies = {f"s3://bucket/{size}": os.urandom(size) for size in (0, 1, 999, 1000, 1001, 2000, 5500)}
    for uri, body in bodies.items():
        files.write_atomic(uri, body)
        assert files.read_bytes(uri) == body
    missing = "s3://bucket/missing"
    *found, error = files.read_many([*bodies, missing])
    assert found == list(bodies.values()) and isinstance(error, FileNotFoundError)
    assert files.list_names("s3://bucket/") == sorted(uri.rpartition("/")[2] for uri in bodies)
    assert files.list_names("s3://bucket/nothing") == [] == files.list_names("s3://bucket/999")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(missing)


class _Refusing:
    """A store that refuses to create an object, as S3's own answers are translated by s3fs."""

    protocol = ("s3", "s3a")

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        if self.codes:
            cause = RuntimeError()
            cause.response = {"Error": {"Code": self.codes.pop(0)}}  # type: ignore[attr-defined]
            raise OSError(22, "refused") from cause


def test_stores_that_do_not_name_the_header_and_writers_that_met(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(*codes: str) -> bool:
        store = _Refusing(*codes)
        monkeypatch.setattr(files, "filesystem", lambda uri: (store, uri))
        return files.put_if_absent("s3://bucket/x", b"")

    assert put() and put("ConditionalRequestConflict", "409")
    assert not put("PreconditionFailed") and not put("ConditionalRequestConflict", "412")
    for codes in (["AccessDenied"], ["409"] * 5):
        with pytest.raises(AltDiffusionError, match="writing failed"):
            put(*codes)
