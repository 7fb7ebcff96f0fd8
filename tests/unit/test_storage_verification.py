"""Damage of every kind of file is found, and what it was is made again alone, by the commands as they are printed."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.erasure import erase
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.verification import verify
from tests import toy_work
from tests.flipped import flip
from tests.toy_work import NAME, Toy

SETTINGS = {"x": 1}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "truncate": truncate, "delete": Path.unlink}


def target(lake: Path, kind: str) -> tuple[Path, list[int]]:
    """Return a file of this kind, and the units that have to be done again without it."""
    version = Lake(str(lake)).version(NAME)
    folder = lake / "datasets" / NAME
    return {
        "shard": (folder / "shards" / f"{version.shards[2].sha256}.parquet", [2]),
        "reject": (folder / "rejects" / f"{version.rejects[4].sha256}.parquet", [4]),
        "table": (folder / "versions" / version.ref.digest / "shards.parquet", []),
        "manifest": (folder / "versions" / version.ref.digest / "manifest.json", []),
        "head": (folder / "head.json", []),
        "record": (folder / "ledger" / version.manifest.fingerprint / "u3.json", [3]),
    }[kind]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["shard", "reject", "table", "manifest", "head", "record"])
def test_damage_is_named_and_the_printed_remedy_makes_it_again_alone(
    tmp_path: Path, kind: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = str(tmp_path)
    digest = toy_work.run(lake, SETTINGS)
    assert main(["dataset", "verify", NAME, "--lake", lake]) == 0
    path, units = target(tmp_path, kind)
    DAMAGES[damage](path)
    Toy.ran.clear()
    capsys.readouterr()
    if (kind, damage) == ("record", "delete"):  # the version is whole: a record only states what need not be done again
        assert main(["dataset", "verify", NAME, "--lake", lake]) == 0
        assert toy_work.run(lake, SETTINGS) == digest and Toy.ran == []
        return
    assert main(["dataset", "verify", NAME, "--lake", lake]) == 1
    printed = capsys.readouterr().err
    assert path.name in printed.splitlines()[0]
    command = re.search(r"run `altdiffusion (.*?)`", printed)
    assert command is not None
    assert main(command[1].split()) == 1
    assert "now removed. Next: run" in capsys.readouterr().out
    assert toy_work.run(lake, SETTINGS) == digest
    if kind == "record":  # the version needs no record to be whole
        assert Toy.ran == []
        Path(Lake(lake).version(NAME).shard_uri(units[0])).unlink()
        assert toy_work.run(lake, SETTINGS) == digest
    assert units == Toy.ran
    assert main(["dataset", "verify", NAME, "--lake", lake]) == 0
    assert Lake(lake).dataset(NAME).digests() == [digest]


def test_several_damages_are_named_at_once_and_an_old_version_by_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = str(tmp_path)
    old = toy_work.run(lake, SETTINGS)
    version = Lake(lake).version(NAME)
    toy_work.run(lake, {"x": 2})
    for index in (1, 5):
        flip(Path(version.shard_uri(index)))
    assert main(["dataset", "verify", NAME, "--lake", lake]) == 0
    assert main(["dataset", "verify", f"{NAME}@{old[:8]}", "--lake", lake]) == 1
    printed = capsys.readouterr().err
    assert all(version.shards[index].sha256 in printed for index in (1, 5)) and "2 damaged or missing" in printed


def test_a_bit_flipped_anywhere_in_a_record_is_found(tmp_path: Path) -> None:
    lake = str(tmp_path)
    toy_work.run(lake, SETTINGS)
    path, _ = target(tmp_path, "record")
    data = path.read_bytes()
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 7
        path.write_bytes(broken)
        found = verify(Lake(lake).dataset(NAME)).damages
        assert [damage.uri for damage in found] == [str(path)], bytes(broken)


def test_a_version_that_never_was_is_a_mistake_not_damage(tmp_path: Path) -> None:
    toy_work.run(str(tmp_path), SETTINGS)
    assert main(["dataset", "verify", "tyos", "--lake", str(tmp_path)]) == 2
    assert main(["dataset", "verify", f"{NAME}@00000000", "--lake", str(tmp_path)]) == 2


def test_a_shard_of_any_size_is_verified_in_little_memory(tmp_path: Path) -> None:
    """64 MB of bytes that are not even Parquet: two blocks a thread are in memory, and a flipped bit is found."""
    dataset = Lake(str(tmp_path)).dataset("d")
    infos = []
    for seed in range(2):
        data = np.random.default_rng(seed).bytes(32 << 20)
        info = ShardInfo(sha256=files.sha256_hex(data), rows=1, bytes=len(data), row_group_rows=1)
        files.write_atomic(shards.shard_uri(files.join(dataset.folder_uri, "shards"), info.sha256), data)
        infos.append(info)
    record = UnitRecord(unit_id="u", index=0, input_digest="0", rows_in=2, shards=tuple(infos))
    version = dataset.publish(kind="images", records=[record], parents=[], config={}, fingerprint="f")
    tracemalloc.start()
    assert verify(dataset).damages == ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    flip(Path(version.shard_uri(1)))
    assert [damage.problem for damage in verify(dataset).damages] == ["its SHA-256 is not its name"]


def table(rows: int) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table(
        {"number": np.arange(rows), "name": [f"n{n % 9}" for n in range(rows)], "image": [draw.bytes(2000)] * rows}
    )


def test_columns_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = [np.random.default_rng(n).bytes(2000) for n in range(4000)]
    whole = table(4000).set_column(2, "image", pa.array(body))
    info = shards.write_table(str(tmp_path), whole)
    read = 0
    fs, path = files.filesystem(shards.shard_uri(str(tmp_path), info.sha256))

    class Counting:
        def open(self, path: str, mode: str) -> object:
            file = fs.open(path, mode)
            inner = file.f.read

            def counted(size: int = -1) -> bytes:
                nonlocal read
                data: bytes = inner(size)
                read += len(data)
                return data

            file.read = counted
            return file

    monkeypatch.setattr(files, "filesystem", lambda uri: (Counting(), path))
    assert read_columns(str(tmp_path), info, ["number", "name"]).equals(whole.select(["number", "name"]))
    assert 0 < read < info.bytes / 20
    few = read_columns(str(tmp_path), info, ["number"], filters=[("number", "=", 3000)])
    assert few["number"].to_pylist() == [3000]


def test_what_is_read_of_a_damaged_shard_is_right_or_refused(tmp_path: Path) -> None:
    whole = table(3000).select(["number", "name"])
    info = shards.write_table(str(tmp_path), whole)
    path = tmp_path / f"{info.sha256}.parquet"
    data = path.read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    pages = len(data) - int.from_bytes(data[-8:-4], "little") - 8  # the footer, which has no checksum, starts there
    for at in draw.integers(4, pages, 150):
        broken = bytearray(data)
        broken[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        try:
            found = read_columns(str(tmp_path), info, ["number", "name"])
        except AltDiffusionError as error:
            assert info.sha256 in error.what and "verify" in error.remedy
            refused += 1
        else:
            assert found.equals(whole)
    assert refused > 100
    path.unlink()
    with pytest.raises(AltDiffusionError, match="is missing"):
        read_columns(str(tmp_path), info, ["number"])


def test_an_old_version_is_erased_with_what_only_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(str(tmp_path))
    old = toy_work.run(lake.uri, SETTINGS)
    first = {info.sha256 for info in lake.version(NAME).shards}
    head = toy_work.run(lake.uri, {"x": 2})
    with pytest.raises(AltDiffusionError, match="is the head"):
        erase(lake.dataset(NAME), lake.version(NAME))
    assert main(["dataset", "erase", NAME, "--lake", lake.uri]) == 2
    assert main(["dataset", "erase", f"{NAME}@{old[:10]}", "--lake", lake.uri]) == 0
    assert "erased" in capsys.readouterr().out
    assert lake.dataset(NAME).digests() == [head]
    assert main(["dataset", "verify", NAME, "--lake", lake.uri]) == 0
    left = {path.stem for path in (tmp_path / "datasets" / NAME / "shards").iterdir()}
    assert left == {info.sha256 for info in lake.version(NAME).shards}
    assert not left & first
    Toy.ran.clear()
    assert toy_work.run(lake.uri, SETTINGS) == old  # what was erased is made again, if its job is run again
    assert Toy.ran == list(range(toy_work.UNITS))


def test_a_missing_dataset_is_reported_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Lake(str(tmp_path)).dataset("images").publish(kind="images", records=[], parents=[], config={}, fingerprint="f")
    assert main(["dataset", "verify", "imagse", "--lake", str(tmp_path)]) == 2
    assert "dataset imagse: has no version" in (printed := capsys.readouterr().err)
    assert "datasets here: images" in printed
