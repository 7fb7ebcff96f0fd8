"""The index of rows answers as reading every shard does: whatever is damaged, missing, or of another version."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.curation.links.takedown import TakedownList, read_list, take_down
from altdiffusion.lineage.row_search import wanted_row
from altdiffusion.storage import holdings as searches
from altdiffusion.storage import row_index
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.erasure import erase
from altdiffusion.storage.holdings import Holdings, search
from tests.takedown_rows import HOSTS, Corpus, image


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Make several segments of several blocks of a small lake."""
    with mock.patch.object(row_index, "BLOCK", 4), mock.patch.object(row_index, "SEGMENT_ROWS", 40):
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.draw(Lake(str(tmp_path_factory.mktemp("index") / "lake")), random.Random(7))


def listed(folder: Path, lines: list[str]) -> TakedownList:
    path = folder / "list.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_list(str(path))


def segments(lake: Lake) -> list[Path]:
    return sorted(Path(lake.uri, "index", "rows").glob("*.rows"))


def facts(found: Holdings) -> tuple[object, ...]:
    rows = {key: numbers.tolist() for key, numbers in found.rows.items()}
    ids = [part.tolist() for part in (found.linked, found.led, found.imaged)]
    return rows, ids, {key: str(error) for key, error in found.unreadable.items()}


def same(lake: Lake, wanted: TakedownList) -> tuple[object, ...]:
    """Check that an indexed search finds what reading everything finds, and return that."""
    whole = facts(search(lake, wanted))
    for _ in range(2):  # the first may index
        assert facts(search(lake, wanted, listed=wanted.tombstones, build_from=1)) == whole
    return whole


def entries(corpus: Corpus) -> list[str]:
    rows = [row for part in (*corpus.rows.values(), *corpus.rejected.values()) for row in part]
    found = {f"hash:{row['sample_id']}" for row in rows if "sample_id" in row}
    found |= {f"sha256:{row['image_sha256']}" for row in rows if row.get("image_sha256")}
    found |= {f"url:{row[name]}" for row in rows for name in ("url", "final_url") if row.get(name)}
    return sorted(found)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_list_finds_what_reading_every_shard_finds(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    known = data.draw(st.lists(st.sampled_from(entries(corpus)), max_size=12, unique=True))
    unknown = data.draw(st.lists(st.sampled_from(["hash:-5", f"sha256:{image(999)}", "url:http://n.example/"])))
    domains = data.draw(st.lists(st.sampled_from([f"domain:{host}" for host in HOSTS]), max_size=1))
    lines = list(dict.fromkeys([*known, *unknown, *domains]))
    if lines:
        same(corpus.lake, listed(tmp_path_factory.mktemp("list"), lines))
        assert domains or len(segments(corpus.lake)) > 1


def test_an_indexed_search_does_not_read_the_other_shards(corpus: Corpus, tmp_path: Path) -> None:
    wanted = listed(tmp_path, [f"hash:{corpus.rows['links'][0]['sample_id']}"])
    same(corpus.lake, wanted)
    with mock.patch.object(searches, "read_columns", None):  # which reads a whole shard
        assert search(corpus.lake, wanted, listed=wanted.tombstones).rows
        row = wanted_row(f"row:{corpus.rows['links'][0]['sample_id']}")
        assert row is not None and search(corpus.lake, row, listed=row.tombstones).rows


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    corpus = Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(1))
    wanted = listed(tmp_path, entries(corpus)[::9])
    whole = same(corpus.lake, wanted)
    kept = {path: path.read_bytes() for path in segments(corpus.lake)}
    draw = random.Random(2)
    path, data = max(kept.items(), key=lambda item: len(item[1]))
    places = [0, 7, 8, 71, 72, 80, 90, len(data) - 1, *(draw.randrange(len(data)) for _ in range(12))]
    for broken in (
        *(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] for at in places),
        b"", data[:40], data[:-1], data[:72], b"\xff" * 100, data.replace(b"rows-1", b"rows-2"),
    ):  # fmt: skip
        path.write_bytes(broken)
        assert facts(search(corpus.lake, wanted, listed=wanted.tombstones, build_from=1)) == whole
        assert facts(search(corpus.lake, wanted, listed=wanted.tombstones, build_from=10**9)) == whole
    for other in kept:  # one that is whole, of other shards, under this name
        path.write_bytes(kept[other])
        assert facts(search(corpus.lake, wanted, listed=wanted.tombstones, build_from=1)) == whole
    assert same(corpus.lake, wanted) == whole


def test_versions_that_came_and_went_since_are_answered(tmp_path: Path) -> None:
    corpus = Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(4))
    lake, lines = corpus.lake, entries(corpus)
    wanted = listed(tmp_path, lines[::5])
    before = same(lake, wanted)
    first = corpus.versions["links"]
    take_down(lake, first, listed(tmp_path, lines[:3]))
    wanted = listed(tmp_path, lines[::5])
    assert same(lake, wanted) != before
    erase(lake.dataset("links"), first)
    found = same(lake, wanted)
    for version in search(lake, wanted).versions:
        assert version.ref != first.ref
    shard = Path(corpus.versions["scores"].shard_uri(0))
    shard.unlink()
    missing = same(lake, wanted)
    assert missing != found and any("is missing" in str(error) for error in missing[2].values())  # type: ignore[attr-defined]


def test_a_small_lake_and_one_that_cannot_be_written_have_no_index(tmp_path: Path) -> None:
    corpus = Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(5))
    wanted = listed(tmp_path, entries(corpus)[:4])
    whole = facts(search(corpus.lake, wanted))
    assert facts(search(corpus.lake, wanted, listed=wanted.tombstones)) == whole and not segments(corpus.lake)
    (tmp_path / "lake" / "index").write_text("in the way")
    assert same(corpus.lake, wanted) == whole
