"""Datasets: equal input gives equal digests, damage is found, of two writers one wins; on a folder and in memory."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.units import Unit
from altdiffusion.records import PROMPTS, REJECTS
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.ledger_pages import read_ledger
from altdiffusion.storage.verification import damages_of


@pytest.fixture(params=["local", "memory"])
def lake_uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "lake")
        return
    uri = f"memory://{tmp_path.name}"
    yield uri
    fsspec.filesystem("memory").rm("/", recursive=True)


def prompts(start: int, count: int) -> pa.Table:
    rows = [
        {"id": f"p{i}", "language": "en" if i % 2 else "th", "prompt": "x", "seed": i, "width": 8, "height": 8}
        for i in range(start, start + count)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def work(lake_uri: str, index: int) -> UnitRecord:
    """Write one unit: five rows in, four accepted, one rejected."""
    dataset = Lake(lake_uri).dataset("prompts")
    reject = {"unit_id": f"u{index}", "row": 4, "reason": "dims", "detail": "1x1"}
    record = UnitRecord(
        unit_id=f"u{index}",
        index=index,
        input_digest="00",
        rows_in=5,
        shards=(dataset.write_shard(prompts(index * 4, 4), row_group_rows=2),),
        rejects=(dataset.write_rejects(pa.Table.from_pylist([reject], schema=REJECTS)),),
        rejects_by_reason={"dims": 1},
        rows_by_language={"en": 2, "th": 2},
    )
    return dataset.ledger("f" * 8).record(record)


def publish(lake_uri: str, records: list[UnitRecord]) -> Version:
    return (
        Lake(lake_uri)
        .dataset("prompts")
        .publish(
            kind="prompts",
            records=records,
            parents=[Ref("source", "file", "a" * 64)],
            config={"x": 1},
            fingerprint="f" * 8,
        )
    )


def test_order_of_arrival_and_repetition_do_not_change_the_digest(lake_uri: str) -> None:
    records = [work(lake_uri, index) for index in range(6)]
    first = publish(lake_uri, records)
    random.Random(3).shuffle(records)
    again = publish(lake_uri, [work(lake_uri, record.index) for record in records])
    assert first.ref == again.ref
    version = Lake(lake_uri).version("prompts")
    assert version.ref == first.ref
    assert (version.rows, version.manifest.rejects_by_reason) == (24, {"dims": 6})
    assert version.manifest.rows_by_language == {"en": 12, "th": 12}
    assert version.read().column("id").to_pylist() == [f"p{i}" for i in range(24)]
    assert version.shard_starts == (0, 4, 8, 12, 16, 20, 24)
    assert damages_of(version) == []
    assert sum(table.num_rows for table in version.iter_rejects()) == 6


def test_ledger_keeps_the_first_record(lake_uri: str) -> None:
    first = work(lake_uri, 0)
    ledger = Lake(lake_uri).dataset("prompts").ledger("f" * 8)
    other = UnitRecord(unit_id="u0", index=0, input_digest="11", rows_in=0)
    assert ledger.record(other) == first
    assert list(read_ledger(ledger).all()) == [first]
    assert ledger.get("u1") is None
    ledger.forget("u0")
    assert ledger.done_ids() == set()


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows in"):
        UnitRecord(unit_id="u", index=0, input_digest="0", rows_in=3, rejects_by_reason={})
    for bad in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="file name"):
            Unit(id=bad, index=0)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("target", ["shard", "reject", "table", "manifest"])
def test_damage_is_found(tmp_path: Path, damage: str, target: str) -> None:
    lake = Lake(str(tmp_path))
    version = publish(lake.uri, [work(lake.uri, index) for index in range(2)])
    path = {
        "shard": tmp_path / "datasets/prompts/shards" / f"{version.shards[1].sha256}.parquet",
        "reject": tmp_path / "datasets/prompts/rejects" / f"{version.rejects[0].sha256}.parquet",
        "table": Path(version.uri) / "shards.parquet",
        "manifest": Path(version.uri) / "manifest.json",
    }[target]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-7])
    else:
        path.unlink()
    if target == "manifest":
        with pytest.raises(AltDiffusionError):
            lake.version("prompts")
        return
    damages = damages_of(lake.version("prompts"))
    assert [path.name in damage.uri for damage in damages] == [True]
    if target == "shard":
        with pytest.raises(AltDiffusionError, match=version.shards[1].sha256):
            lake.version("prompts").read()
        work(lake.uri, 1) if damage != "flip" else (path.unlink(), work(lake.uri, 1))  # made again alone
        assert damages_of(lake.version("prompts")) == []


def _race(uri: str, index: int, barrier: object, wins: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    if files.put_if_absent(uri, str(index).encode() * 1000):
        wins.put(index)  # type: ignore[attr-defined]


def test_of_eight_writers_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        uri = str(tmp_path / f"race-{turn}" / "record.json")
        barrier, wins = context.Barrier(8), context.Queue()
        processes = [context.Process(target=_race, args=(uri, i, barrier, wins)) for i in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert files.read_bytes(uri) == str(wins.get(timeout=60)).encode() * 1000
        assert wins.empty()
        assert files.list_names(str(tmp_path / f"race-{turn}")) == ["record.json"]


def test_unknown_versions_are_named(lake_uri: str) -> None:
    lake = Lake(lake_uri)
    with pytest.raises(AltDiffusionError, match=r"dataset links: has no version.*run the job"):
        lake.version("links")
    digest = publish(lake_uri, [work(lake_uri, 0)]).ref.digest
    assert lake.version(f"prompts@{digest[:9]}").ref.digest == digest
    assert lake.version(f"dataset:prompts@{digest}").ref.digest == digest
    with pytest.raises(AltDiffusionError, match=digest[:12]):
        lake.version("prompts@0000000000")
    with pytest.raises(AltDiffusionError, match="not usable"):
        lake.dataset("../etc")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("not a folder")
    with pytest.raises(AltDiffusionError, match="file is in the place of a folder"):
        work(str(tmp_path / "lake"), 0)


def test_refs_parse_what_they_print() -> None:
    ref = Ref("checkpoint", "m18-quality/step-00000100", "0123456789abcdef")
    assert Ref.parse(str(ref)) == ref
    assert Ref.parse(ref.short).matches(ref)
    for bad in ("dataset:links", "image:x@01234567", "dataset:links@xyz", "links@0123456789"):
        with pytest.raises(AltDiffusionError, match="kind:name@digest"):
            Ref.parse(bad)
