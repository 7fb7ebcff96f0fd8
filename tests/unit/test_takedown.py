"""Takedown against an oracle that knows every row: the answer is complete, the rows are gone and cannot come back."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import blocklist_lines, read_list, read_urls, take_down
from altdiffusion.curation.web.blocklist import load_blocklist
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.impact import impact
from altdiffusion.records import REJECTS, SCHEMAS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import search
from altdiffusion.storage.ledger import UnitRecord, total
from altdiffusion.storage.removal import after_takedowns
from altdiffusion.storage.verification import verify
from altdiffusion.tally import tally
from altdiffusion.urls import url_keys
from tests import toy_work
from tests.takedown_rows import (
    SOURCE,
    Corpus,
    Row,
    corpus,
    image,
    list_lines,
    make_row,
    places_of,
    publish,
    run,
    write_list,
)
from tests.toy_work import NAME, Toy

__all__ = ["corpus"]


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_are_found_removed_and_kept_out(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    corpus = Corpus.draw(Lake(f"memory://{tmp_path.name}"), draw)
    lines = list_lines(corpus, draw)
    wanted = read_list(write_list(tmp_path / "list.txt", lines))
    meant = corpus.meant(lines)
    holdings = search(corpus.lake, wanted)
    assert {name: places_of(version, holdings) for name, version in corpus.versions.items()} == meant

    found = impact(graphs.scan(corpus.lake.uri), holdings)
    assert {held.node.name: held.rows for held in found.held if held.rows} == {n: len(r) for n, r in meant.items() if r}
    runs = {str(ref) for ref in corpus.runs.values()} if meant["latents"] else set()
    made = {one.node.ref for one in found.made}
    assert made == (runs | {str(corpus.versions["generations"].ref)} if runs else set())

    for name, before in corpus.versions.items():
        removal, _ = take_down(corpus.lake, before, wanted)
        _check_removed(corpus, name, removal.before, removal.after, meant[name], wanted.sha256)
        again, _ = take_down(corpus.lake, before, wanted)
        assert again.after is None or (again.already and again.after.ref == removal.after.ref)  # type: ignore[union-attr]
        head = corpus.lake.version(name)
        assert take_down(corpus.lake, head, wanted)[0].after is None  # nothing is left
        assert head.ref == (removal.after or before).ref
        assert after_takedowns(corpus.lake.dataset(name), before).ref == head.ref

    held = impact(graphs.scan(corpus.lake.uri), search(corpus.lake, wanted)).held
    assert not any(one.is_head for one in held)

    # The source's rows, had they been selected with these lines in the blocklists: whatever was removed is refused.
    kept_out = write_list(tmp_path / "blocklist.txt", blocklist_lines(wanted, holdings))
    blocklist = load_blocklist(kept_out, files.sha256_hex(Path(kept_out).read_bytes()))
    for name in ("links", "images"):
        table = pa.table({key: [row[key] for row in corpus.rows[name]] for key in ("url", "sample_id", "image_sha256")})
        blocked = blocklist.blocks(url_keys(table["url"]), table["sample_id"].combine_chunks())
        assert all(blocked[place] for place in meant[name])
        stays = [row for place, row in enumerate(corpus.rows[name]) if place not in meant[name] and name == "images"]
        assert not any(row["image_sha256"] in blocklist.image_sha256 for row in stays)


def test_shards_without_the_column_of_last_links_are_read_and_searched(tmp_path: Path) -> None:
    """Versions of older lakes, and those that carry such shards on next to new ones."""
    lake = Lake(str(tmp_path))
    draw = random.Random(0)
    rows = [{**make_row(number, draw), "final_url": f"http://cdn.example/{number}"} for number in range(4)]
    new = publish(lake, "images", "images", rows, [], [SOURCE], 2)
    old = new.read_shard(0).drop_columns(["final_url"])
    shards = (lake.dataset("images").write_shard(old), new.shards[1])
    record = UnitRecord(unit_id="u", index=0, input_digest="0" * 64, rows_in=4, shards=shards)
    mixed = lake.dataset("images").publish(kind="images", records=[record], parents=[], config={}, fingerprint="f")
    assert mixed.read().schema.equals(SCHEMAS["images"])
    assert mixed.read(["sample_id", "final_url"])["final_url"].to_pylist() == [None, None, *_finals(rows[2:])]
    holdings = search(lake, read_urls(write_list(tmp_path / "urls.txt", ["http://cdn.example/3", rows[0]["url"]])))
    assert places_of(mixed, holdings) == [0, 3]
    assert holdings.pictured.tolist() == [rows[3]["sample_id"]]


def _finals(rows: Sequence[Row]) -> list[Any]:
    return [row["final_url"] for row in rows]


def _check_removed(
    corpus: Corpus, name: str, before: Version, after: Version | None, places: list[int], sha256: str
) -> None:
    texts = [row["url"] for row in corpus.rejected[name]]
    if after is None:
        assert not places
        return
    key = "id" if name == "generations" else "sample_id"
    stays = [row for place, row in enumerate(corpus.rows[name]) if place not in places]
    assert after.read([key])[key].to_pylist() == [row[key] for row in stays]
    assert after.read().equals(before.read().take(pa.array(sorted(set(range(before.rows)) - set(places)), pa.int64())))
    touched = {index for index in range(len(before.shards)) for place in places if _in(before, index, place)}
    assert [a == b for a, b in zip(after.shards, before.shards, strict=True)] == [
        index not in touched for index in range(len(before.shards))
    ]
    manifest = after.manifest
    assert manifest.config == {"takedown": sha256} and manifest.parent_refs[0] == before.ref
    assert manifest.rows_by_language == dict(sorted(Counter(row["language"] for row in stays).items()))
    assert manifest.rejects_by_reason.get("takedown", 0) == len(places)
    if name == "links":
        tables = [after.read_shard(index) for index in range(len(after.shards))]
        assert manifest.tally == total(tally(table) for table in tables if table.num_rows)
    rejects = pa.concat_tables([REJECTS.empty_table(), *after.iter_rejects()]).to_pylist()
    taken = [row for row in rejects if row["reason"] == "takedown"]
    assert [row["row"] for row in taken] == places
    assert all(row["url"] is None for row in taken)
    assert [row["sample_id"] for row in taken] == [corpus.rows[name][place].get("sample_id") for place in places]
    listed = {row["sample_id"] for row in taken if row["sample_id"] is not None}
    others = [row for row in rejects if row["reason"] != "takedown"]
    assert len(others) == len(texts)
    assert not any(row["url"] for row in others if row["sample_id"] in listed)
    assert verify(corpus.lake.dataset(name), after.ref.digest).damages == ()


def _in(version: Version, index: int, place: int) -> bool:
    return version.shard_starts[index] <= place < version.shard_starts[index + 1]


def test_the_commands_print_what_was_done_and_what_is_left(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = corpus.lake.uri
    row = corpus.rows["latents"][0]
    listed = write_list(tmp_path / "list.txt", [f"url:{row['url']}", f"sha256:{row['image_sha256']}"])
    before = corpus.versions["images"].ref
    printed = run(capsys, "dataset", "remove", "images", "--hashes", listed, "--lake", lake)
    after = corpus.lake.version("images").ref
    assert f"{before.short} -> {after.short} (head)" in printed and "rows removed" in printed
    assert f"altdiffusion dataset remove latents --hashes {listed} --lake {lake}" in printed
    assert f"altdiffusion dataset erase images@{before.digest[:12]} --lake {lake}" in printed
    assert "train again" in printed and "generate it again" in printed
    assert f"  url:{row['url']}" in printed and f"  hash:{row['sample_id']}" in printed
    assert "holds none of these rows" in run(capsys, "dataset", "remove", "images", "--hashes", listed, "--lake", lake)
    assert "already there" in run(
        capsys, "dataset", "remove", f"images@{before.digest}", "--hashes", listed, "--lake", lake
    )
    assert corpus.lake.version("images").ref == after
    for command in [line.strip() for line in printed.splitlines() if line.strip().startswith("altdiffusion dataset")]:
        assert main(command.split()[1:]) == 0
    capsys.readouterr()
    left = json.loads(run(capsys, "lineage", "impact", "--hashes", listed, "--json", "--lake", lake))
    while old := [held for held in left["held"] if not held["head"]]:  # versions before the later takedowns
        name, _, digest = old[0]["ref"].removeprefix("dataset:").partition("@")
        run(capsys, "dataset", "erase", f"{name}@{digest}", "--lake", lake)
        left = json.loads(run(capsys, "lineage", "impact", "--hashes", listed, "--json", "--lake", lake))
    assert left["held"] == []
    for path in Path(lake).rglob("*.parquet"):  # not one file still has the link or the image
        data = path.read_bytes()
        assert row["url"].encode() not in data, path


def test_a_second_takedown_goes_on_from_the_first(corpus: Corpus, tmp_path: Path) -> None:
    dataset, first = corpus.lake.dataset("scores"), corpus.versions["scores"]
    ids = [row["sample_id"] for row in corpus.rows["scores"][:2]]
    for number, sample_id in enumerate(ids, 1):
        wanted = read_list(write_list(tmp_path / f"{number}.txt", [f"hash:{sample_id}"]))
        take_down(corpus.lake, corpus.lake.version("scores"), wanted)
        head = corpus.lake.version("scores")
        assert head.manifest.rejects_by_reason["takedown"] == number
        assert after_takedowns(dataset, first).ref == head.ref
    dataset.set_head(first)  # as a job does that finds what it made before
    assert after_takedowns(dataset, first).manifest.rejects_by_reason == {"takedown": 2}


def test_a_job_that_is_run_again_does_not_bring_the_rows_back(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first = lake.dataset(NAME).open(toy_work.run(lake.uri, {"x": 1}))
    lines = [f"sha256:{toy_work.image(unit, 2)}" for unit in (1, 4)]
    after = take_down(lake, first, read_list(write_list(tmp_path / "list.txt", lines)))[0].after
    assert after is not None and after.rows == first.rows - 2
    Toy.ran.clear()
    assert toy_work.run(lake.uri, {"x": 1}) == after.ref.digest
    assert Toy.ran == [] and lake.version(NAME).ref == after.ref
    Path(first.shard_uri(4)).unlink()  # a file that only the old version had is not made again
    assert toy_work.run(lake.uri, {"x": 1}) == after.ref.digest
    assert Toy.ran == [] and lake.version(NAME).ref == after.ref


def test_a_dataset_may_lose_all_its_rows(corpus: Corpus, tmp_path: Path) -> None:
    lines = [f"hash:{row['sample_id']}" for row in corpus.rows["latents"]]
    removal, _ = take_down(corpus.lake, corpus.versions["latents"], read_list(write_list(tmp_path / "list.txt", lines)))
    assert removal.after is not None
    assert (removal.after.rows, removal.rows) == (0, len(lines))
    assert len(removal.after.shards) == len(removal.before.shards)


def test_a_removal_is_widened_to_the_same_bytes_and_to_what_looks_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    draw = random.Random(0)
    hashed = draw.getrandbits(62) | (1 << 40) - 1  # enough bits to recognise an image by
    rows = [
        {
            **make_row(n, draw),
            "sample_id": n,
            "url": f"http://h.example/{n}",
            "final_url": None,
            "image_sha256": image(n),
        }
        for n in range(40)
    ]
    for n, row in enumerate(rows):
        row["phash"] = draw.getrandbits(63)
        if n < 21:  # one file under 21 links
            row |= {"image_sha256": image(0), "phash": hashed}
        elif n < 24:
            row |= {"phash": hashed ^ sum(1 << bit for bit in draw.sample(range(63), n - 20))}
    publish(lake, "images", "images", rows, [], [SOURCE], 9)
    publish(lake, "scores", "scores", rows, [], [SOURCE], 9)
    listed = write_list(tmp_path / "list.txt", ["url:http://h.example/5"])
    printed = run(capsys, "lineage", "impact", "--hashes", listed, "--lake", lake.uri)
    assert "20 other rows hold the same bytes, 3 look alike (perceptual hash)" in printed
    for options, removed in (
        ([], 1), (["--same-bytes"], 21), (["--alike", "1"], 22), (["--alike", "2", "--same-bytes"], 23),
        (["--alike", "4"], 24),
    ):  # fmt: skip
        command = ["lineage", "impact", "--hashes", listed, "--json", "--lake", lake.uri, *options]
        document = json.loads(run(capsys, *command))
        assert {held["rows"] for held in document["held"]} == {removed}, options
        assert document["other_rows_of_same_bytes"] == (0 if options else 20)
    printed = run(capsys, "dataset", "remove", "images", "--hashes", listed, "--alike", "4", "--lake", lake.uri)
    assert "24 rows removed" in printed and "other rows" not in printed
    assert lake.version("images").read(["sample_id"])["sample_id"].to_pylist() == list(range(24, 40))
