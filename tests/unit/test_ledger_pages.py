"""Records in pages: what is read is what the files hold, whatever happened to files and pages in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import folding
from altdiffusion.storage import files, ledger_pages, shards
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.ledger_pages import files_of, read_ledger
from altdiffusion.storage.shards import ShardInfo


def record(number: int, rows: int = 3) -> UnitRecord:
    shard = ShardInfo(sha256=f"{number:063x}{rows % 16:x}", rows=rows, bytes=9, row_group_rows=2)
    return UnitRecord(unit_id=f"{number:04d}-u", index=number, input_digest="d", rows_in=rows, shards=(shard,))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_pages, "FOLD_FROM", 4)
    monkeypatch.setattr(ledger_pages, "PAGE_RECORDS", 5)
    monkeypatch.setattr(ledger_pages, "_AT_ONCE", 3)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def ledger_of(folder: Path, count: int = 12) -> Ledger:
    ledger = Lake(str(folder)).dataset("d").ledger("f")
    for number in range(count):
        ledger.record(record(number))
    return ledger


def pages(ledger: Ledger) -> list[str]:
    assert ledger.pages_uri is not None
    return files.list_names(ledger.pages_uri)


def test_records_are_read_from_pages_and_not_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(tmp_path)
    first = list(read_ledger(ledger).all())
    assert first == [record(number) for number in range(12)] and len(pages(ledger)) == 3
    asked: list[str] = []
    read_many = files.read_many

    def noted(uris: Sequence[str]) -> Any:
        asked.extend(uris)
        return read_many(uris)

    monkeypatch.setattr(files, "read_many", noted)
    state = read_ledger(ledger)
    assert list(state.of_units(["0007-u", "0001-u"])) == [record(7), record(1)]
    assert dict(state.files()) == {one.unit_id: files_of(one) for one in first}
    assert [uri for uri in asked if uri.endswith(".json")] == []


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("rfaxd"), st.integers(0, 14)), max_size=12))
def test_any_order_of_changes_and_readings_gives_what_the_files_hold(
    tmp_path: Path, changes: list[tuple[str, int]]
) -> None:
    """Replace, forget, add, lose the pages, damage one; after each, what is read is the files' content."""
    shutil.rmtree(tmp_path / "lake", ignore_errors=True)
    ledger = ledger_of(tmp_path / "lake", 9)
    held = {number: record(number) for number in range(9)}
    for rows, (change, number) in enumerate(changes, 4):
        if change == "r" and number in held:
            held[number] = record(number, rows)
            ledger.replace(held[number])
        elif change == "f":
            held.pop(number, None)
            ledger.forget(record(number).unit_id)
        elif change == "a":
            held.setdefault(number, ledger.record(record(number)))
        elif change == "x":
            shutil.rmtree(tmp_path / "lake/index", ignore_errors=True)
        elif pages(ledger):
            page = tmp_path / "lake/index/ledger/d/f" / pages(ledger)[number % len(pages(ledger))]
            page.write_bytes(page.read_bytes()[:-7] + b"damaged")
        state = read_ledger(ledger)
        assert list(state.all()) == [held[number] for number in sorted(held)]
        assert dict(state.files()) == {one.unit_id: files_of(one) for one in held.values()}


def test_pages_whose_records_all_changed_are_removed(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 5)
    read_ledger(ledger)
    (before,) = pages(ledger)
    for number in range(5):
        ledger.replace(record(number, 7))
    assert list(read_ledger(ledger).all()) == [record(number, 7) for number in range(5)]
    (after,) = pages(ledger)
    assert after != before


def test_a_damaged_record_is_in_no_page_and_is_named(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    uri = files.local_path(ledger.uri("0003-u"))
    Path(uri).write_text(Path(uri).read_text().replace('"rows_in":3', '"rows_in":4'))
    with pytest.raises(AltDiffusionError, match=r"0003-u\.json: is not a unit record"):
        list(read_ledger(ledger).all())
    assert read_ledger(ledger).loose() == ["0003-u"]


def test_a_page_cannot_lend_a_unit_the_record_of_another(tmp_path: Path) -> None:
    """Pages are as untrusted as the files: each record is checked again when it is read."""
    ledger = ledger_of(tmp_path, 5)
    read_ledger(ledger)
    (name,) = pages(ledger)
    path = tmp_path / "index/ledger/d/f" / name
    table = pq.read_table(path)
    swapped = table.set_column(3, table.schema.field(3), table["record"].take([1, 0, 2, 3, 4]))
    data = shards.encode(swapped)
    path.unlink()
    (path.parent / f"{files.sha256_hex(data)}.parquet").write_bytes(data)
    with pytest.raises(AltDiffusionError, match="it is the record of unit 0001-u"):
        list(read_ledger(ledger).all())


def test_a_lake_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(tmp_path)

    def refused(uri: str, data: bytes) -> None:
        raise AltDiffusionError(f"storage {uri}", "is read-only", "choose another")

    monkeypatch.setattr(files, "write_atomic", refused)
    assert list(read_ledger(ledger).all()) == [record(number) for number in range(12)]
    assert pages(ledger) == []


def test_pages_are_written_while_units_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PAGE_RECORDS", 5)
    ledger = ledger_of(tmp_path, 0)
    with folding.Folding([ledger], 0) as pages_of:
        for number in range(6):
            ledger.record(record(number))
            pages_of.advance()
    assert pages(ledger) != []
    assert read_ledger(ledger).loose() in ([], ["0005-u"])


def test_a_storage_that_does_not_answer_costs_the_pages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PAGE_RECORDS", 1)

    def refused(ledger: Ledger) -> Any:
        raise AltDiffusionError("storage", "does not answer", "try again")

    monkeypatch.setattr(folding, "read_ledger", refused)
    with folding.Folding([ledger_of(tmp_path, 0)], 0) as pages_of:
        pages_of.advance()
