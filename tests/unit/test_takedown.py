"""Takedown against an oracle that knows every row: the answer is complete, the rows are gone and cannot come back."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import blocklist_lines, read_list, read_urls, take_down
from altdiffusion.curation.web.blocklist import load_blocklist
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.impact import impact
from altdiffusion.records import REJECTS, SCHEMAS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import search
from altdiffusion.storage.ledger import UnitRecord, total
from altdiffusion.storage.removal import after_takedowns
from altdiffusion.storage.verification import verify
from altdiffusion.tally import tally
from altdiffusion.urls import url_key, url_keys
from tests import toy_work
from tests.lineage_lake import checkpoint
from tests.toy_work import NAME, Toy

Row = dict[str, Any]
HOSTS = ("a.example", "img.a.example", "b.example", "cdn.b.example", "xa.example", "c.example")
SOURCE = Ref("source", "crawl", "5" * 64)


def image(number: int) -> str:
    return files.sha256_hex(str(number).encode())


def publish(
    lake: Lake, name: str, kind: Kind, rows: Sequence[Row], rejected: Sequence[Row], parents: Sequence[Ref], cut: int
) -> Version:
    """Publish a version in shards of `cut` rows, its rejects in as many shards."""
    dataset = lake.dataset(name)
    schema = SCHEMAS[kind]
    count = max(1, -(-len(rows) // cut))
    records = []
    for index in range(count):
        part = [{f.name: row.get(f.name, _filler(f)) for f in schema} for row in rows[index * cut : (index + 1) * cut]]
        gone = [
            {"unit_id": f"u{index}", "row": n, "reason": "timeout", "detail": "its caption", **row}
            for n, row in enumerate(rejected[index::count])
        ]
        table = pa.Table.from_pylist(part, schema=schema)
        reject = pa.Table.from_pylist([{f.name: row.get(f.name) for f in REJECTS} for row in gone], schema=REJECTS)
        records.append(
            UnitRecord(
                unit_id=f"u{index}",
                index=index,
                input_digest="0" * 64,
                rows_in=len(part) + len(gone),
                shards=(dataset.write_shard(table),),
                rejects=(dataset.write_rejects(reject),) if gone else (),
                rejects_by_reason={"timeout": len(gone)} if gone else {},
                rows_by_language=dict(sorted(Counter(row["language"] for row in part).items())),
                tally=tally(table) if kind == "links" else {},
            )
        )
    return dataset.publish(kind=kind, records=records, parents=parents, config={"of": name}, fingerprint="f" * 64)


def _filler(field: pa.Field) -> Any:
    if field.nullable:
        return None
    if pa.types.is_list(field.type):
        return [1]
    return b"x" if pa.types.is_binary(field.type) else "x" if pa.types.is_string(field.type) else 7


@dataclass
class Corpus:
    """links -> images -> latents, scores -> checkpoint -> generations; and all that is in them, as plain rows."""

    lake: Lake
    rows: dict[str, list[Row]] = field(default_factory=dict)
    rejected: dict[str, list[Row]] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)
    runs: dict[str, Ref] = field(default_factory=dict)

    @classmethod
    def draw(cls, lake: Lake, draw: random.Random) -> Corpus:
        self = cls(lake)
        made = [_row(number, draw) for number in range(60)]
        links = [row for row in made if draw.random() < 0.8]
        left = [row for row in made if row not in links]
        images = [row for row in links if draw.random() < 0.8]
        failed = [row for row in links if row not in images]
        drawn = [
            {"id": f"p{n}", "language": "en", "prompt": "x", "seed": n, "image_sha256": image(draw.randrange(40))}
            for n in range(12)
        ]
        self.add("links", "links", links, left, [SOURCE], draw)
        self.add("images", "images", images, failed, [self.versions["links"].ref], draw)
        latents = [row for row in images if draw.random() < 0.7]
        self.add("latents", "latents", latents, [], [self.versions["images"].ref], draw)
        self.add("scores", "scores", images, [], [self.versions["images"].ref], draw)
        self.runs["alignment"] = checkpoint(lake, "alignment", 1, "alignment", [self.versions["latents"].ref], {})
        self.runs["quality"] = checkpoint(lake, "quality", 1, "quality", [self.runs["alignment"]], {})
        self.add("generations", "generations", drawn, [], [self.runs["quality"]], draw)
        return self

    def add(
        self,
        name: str,
        kind: Kind,
        rows: list[Row],
        rejected: list[Row],
        parents: Sequence[Ref],
        draw: random.Random,
    ) -> None:
        self.rows[name], self.rejected[name] = rows, rejected
        self.versions[name] = publish(self.lake, name, kind, rows, rejected, parents, draw.randint(3, 20))

    def meant(self, lines: Sequence[str]) -> dict[str, list[int]]:
        """Return the places of the listed rows in each dataset: the oracle."""
        ids = {int(line[5:]) for line in lines if line.startswith("hash:")}
        hashes = {line[7:].lower() for line in lines if line.startswith("sha256:")}
        keys = {url_key(line[4:]) for line in lines if line.startswith("url:")}
        domains = [line[7:].lower() for line in lines if line.startswith("domain:")]

        def linked(row: Row) -> bool:
            host = urlsplit(row["url"]).hostname or ""
            return url_key(row["url"]) in keys or any(host == d or host.endswith(f".{d}") for d in domains)

        everything = [row for name in ("links", "images") for row in [*self.rows[name], *self.rejected[name]]]
        ids |= {row["sample_id"] for row in everything if linked(row)}
        ids |= {
            row["sample_id"] for row in self.rows["images"] if row["final_url"] and linked({"url": row["final_url"]})
        }
        seen = [row for name in ("images", "latents", "scores") for row in self.rows[name]]
        by_image = {row["sample_id"] for row in seen if row["image_sha256"] in hashes}
        return {
            name: [
                place
                for place, row in enumerate(rows)
                if row.get("sample_id") in ids
                or (row["image_sha256"] in hashes if name != "links" else row["sample_id"] in by_image)
            ]
            for name, rows in self.rows.items()
        }


def _row(number: int, draw: random.Random) -> Row:
    return {
        "sample_id": draw.getrandbits(64) - (1 << 63),
        "url": f"{draw.choice(['http', 'https'])}://{draw.choice(HOSTS)}/{draw.randrange(40)}.jpg",
        "final_url": draw.choice([None, None, f"https://{draw.choice(HOSTS)}/{draw.randrange(90)}.jpg"]),
        "caption": f"caption {number}",
        "language": draw.choice(["en", "ko", "th"]),
        "width": draw.randint(100, 900),
        "height": draw.randint(100, 900),
        "similarity": draw.random(),
        "image_sha256": image(draw.randrange(40)),
        "source": "crawl",
    }


def _lines(corpus: Corpus, draw: random.Random) -> list[str]:
    rows = [row for name in ("links", "images") for row in [*corpus.rows[name], *corpus.rejected[name]]]
    every = [
        lambda row: f"hash:{row['sample_id']}",
        lambda row: f"sha256:{row['image_sha256']}" if draw.random() < 0.5 else f"sha256:{row['image_sha256'].upper()}",
        lambda row: f"url:{row['url']}",
        lambda row: f"url:{row['url'].replace('http:', 'https:')}?utm_source=x#top",
        lambda row: f"domain:{urlsplit(row['url']).hostname}",
        lambda row: f"url:{row['final_url'] or row['url']}",
        lambda row: f"url: {row['url'].replace('.example', '。EXAMPLE..:0080').replace('https:', 'http:')}\u00a0",
    ]
    weights = (5, 3, 4, 4, 1, 4, 3)
    lines = [draw.choices(every, weights)[0](draw.choice(rows)) for _ in range(draw.randint(1, 5))]
    return [*lines, "hash:12345", f"sha256:{'0' * 64}", "url:http://nowhere.example/1"]


def _file(path: Path, lines: Sequence[str]) -> str:
    path.write_text("# a request\n\n" + "\n".join(lines) + "\n")
    return str(path)


def _found(version: Version, holdings: Any) -> list[int]:
    return sorted(int(version.shard_starts[index] + row) for index, rows in holdings.of(version) for row in rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_are_found_removed_and_kept_out(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    corpus = Corpus.draw(Lake(f"memory://{tmp_path.name}"), draw)
    lines = _lines(corpus, draw)
    wanted = read_list(_file(tmp_path / "list.txt", lines))
    meant = corpus.meant(lines)
    holdings = search(corpus.lake, wanted)
    assert {name: _found(version, holdings) for name, version in corpus.versions.items()} == meant

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
    kept_out = _file(tmp_path / "blocklist.txt", blocklist_lines(wanted, holdings))
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
    rows = [{**_row(number, draw), "final_url": f"http://cdn.example/{number}"} for number in range(4)]
    new = publish(lake, "images", "images", rows, [], [SOURCE], 2)
    old = new.read_shard(0).drop_columns(["final_url"])
    shards = (lake.dataset("images").write_shard(old), new.shards[1])
    record = UnitRecord(unit_id="u", index=0, input_digest="0" * 64, rows_in=4, shards=shards)
    mixed = lake.dataset("images").publish(kind="images", records=[record], parents=[], config={}, fingerprint="f")
    assert mixed.read().schema.equals(SCHEMAS["images"])
    assert mixed.read(["sample_id", "final_url"])["final_url"].to_pylist() == [None, None, *_finals(rows[2:])]
    holdings = search(lake, read_urls(_file(tmp_path / "urls.txt", ["http://cdn.example/3", rows[0]["url"]])))
    assert _found(mixed, holdings) == [0, 3]
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


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(3))


def run(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 0
    return capsys.readouterr().out


def test_the_commands_print_what_was_done_and_what_is_left(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = corpus.lake.uri
    row = corpus.rows["latents"][0]
    listed = _file(tmp_path / "list.txt", [f"url:{row['url']}", f"sha256:{row['image_sha256']}"])
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


def test_impact_lists_what_holds_the_rows_and_what_was_made_from_them(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = corpus.rows["latents"][0]
    listed = _file(tmp_path / "list.txt", [f"hash:{row['sample_id']}"])
    printed = run(capsys, "lineage", "impact", "--hashes", listed, "--lake", corpus.lake.uri)
    for name in ("links", "images", "latents", "scores"):
        assert f"dataset {name} @{corpus.versions[name].ref.digest[:12]}" in printed
    assert "checkpoint alignment/step-00000001" in printed and "checkpoint quality/step-00000001" in printed
    assert "which of them it drew is not known: run alignment: has no run.json" in printed
    urls = tmp_path / "urls.txt"
    urls.write_text(row["url"] + "\n")
    document = json.loads(run(capsys, "lineage", "impact", "--urls", str(urls), "--json", "--lake", corpus.lake.uri))
    assert {held["ref"] for held in document["held"]} >= {
        str(corpus.versions[name].ref) for name in ("links", "images", "latents", "scores")
    }
    nowhere = _file(tmp_path / "other.txt", ["hash:1"])
    assert "nothing in this lake" in run(capsys, "lineage", "impact", "--hashes", nowhere, "--lake", corpus.lake.uri)


def test_a_row_that_was_rejected_on_the_way_counts_against_nothing_after(corpus: Corpus, tmp_path: Path) -> None:
    images = {row["sample_id"] for row in corpus.rows["images"]}
    row = next(row for row in corpus.rows["links"] if row["sample_id"] not in images)
    wanted = read_list(_file(tmp_path / "list.txt", [f"hash:{row['sample_id']}"]))
    found = impact(graphs.scan(corpus.lake.uri), search(corpus.lake, wanted))
    assert [(held.node.name, held.rows, held.rejected) for held in found.held] == [("images", 0, 1), ("links", 1, 0)]
    assert found.made == ()


def test_an_answer_that_cannot_be_complete_is_marked(corpus: Corpus, tmp_path: Path) -> None:
    version = corpus.versions["latents"]
    shard = Path(version.shard_uri(0))
    data = shard.read_bytes()
    shard.unlink()
    wanted = read_list(_file(tmp_path / "list.txt", [f"hash:{corpus.rows['latents'][-1]['sample_id']}"]))
    found = impact(graphs.scan(corpus.lake.uri), search(corpus.lake, wanted))
    assert [shard.name in text for text in found.unknown] == [True]
    assert {held.node.name for held in found.held} >= {"images", "links"}
    with pytest.raises(AltDiffusionError, match=r"is missing.*verify"):
        take_down(corpus.lake, version, wanted)
    assert corpus.lake.version("latents").ref == version.ref
    shard.write_bytes(data)
    assert take_down(corpus.lake, version, wanted)[0].rows == 1


def test_a_second_takedown_goes_on_from_the_first(corpus: Corpus, tmp_path: Path) -> None:
    dataset, first = corpus.lake.dataset("scores"), corpus.versions["scores"]
    ids = [row["sample_id"] for row in corpus.rows["scores"][:2]]
    for number, sample_id in enumerate(ids, 1):
        wanted = read_list(_file(tmp_path / f"{number}.txt", [f"hash:{sample_id}"]))
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
    after = take_down(lake, first, read_list(_file(tmp_path / "list.txt", lines)))[0].after
    assert after is not None and after.rows == first.rows - 2
    Toy.ran.clear()
    assert toy_work.run(lake.uri, {"x": 1}) == after.ref.digest
    assert Toy.ran == [] and lake.version(NAME).ref == after.ref
    Path(first.shard_uri(4)).unlink()  # a file that only the old version had is not made again
    assert toy_work.run(lake.uri, {"x": 1}) == after.ref.digest
    assert Toy.ran == [] and lake.version(NAME).ref == after.ref


def test_a_dataset_may_lose_all_its_rows(corpus: Corpus, tmp_path: Path) -> None:
    lines = [f"hash:{row['sample_id']}" for row in corpus.rows["latents"]]
    removal, _ = take_down(corpus.lake, corpus.versions["latents"], read_list(_file(tmp_path / "list.txt", lines)))
    assert removal.after is not None
    assert (removal.after.rows, removal.rows) == (0, len(lines))
    assert len(removal.after.shards) == len(removal.before.shards)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lists nothing"),
        ("\ufeff# only\n", "lists nothing"),
        ("url:x\nsha256:12\n", "line 1: is 'url:x'.*line 2"),
        ("http://x\n", "line 1"),
    ],
)
def test_empty_or_invalid_lists_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(AltDiffusionError, match=problem):
        read_list(str(path))
    with pytest.raises(AltDiffusionError, match="is not there"):
        read_urls(str(tmp_path / "none.txt"))


def test_a_list_of_links_is_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_bytes("\ufeffhttp://a.example/x\u00a0\r\n\r\n# why\r\nnot a link\r\n".encode("utf-16"))
    with pytest.raises(AltDiffusionError, match=r"urls\.txt, line 4: is 'not a link'.*write one link per line"):
        read_urls(str(path))
    path.write_bytes(path.read_bytes()[: -len("not a link\r\n") * 2])
    assert read_urls(str(path)).lines == ("url:http://a.example/x",)


def test_blocklist_lines_are_written_whole(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"hash:{number}" for number in range(40)]
    listed = _file(tmp_path / "list.txt", lines)
    out = tmp_path / "block.txt"
    printed = run(
        *(capsys, "dataset", "remove", "images", "--hashes", listed, "--lake", corpus.lake.uri),
        *("--blocklist-out", str(out)),
    )
    assert "and 20 more" in printed and files.sha256_hex(out.read_bytes()) in printed
    assert sorted(out.read_text().splitlines()) == sorted(lines)
    assert "holds none of these rows" in printed


def test_the_record_answers_after_everything_was_erased(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, row = corpus.lake.uri, corpus.rows["latents"][0]
    listed = _file(tmp_path / "list.txt", [f"url:{row['url']}", f"sha256:{row['image_sha256']}"])

    def asked(file: str) -> Any:
        return json.loads(run(capsys, "lineage", "impact", "--hashes", file, "--json", "--lake", lake))

    before = asked(listed)
    held = [name for name in corpus.versions if f'"dataset:{name}@' in json.dumps(before["held"])]
    for name in held:
        run(
            *(capsys, "dataset", "remove", name, "--hashes", listed, "--lake", lake),
            *("--reason", "the photographer asked", "--by", "ticket 7"),
        )
    for name in held:
        for digest in corpus.lake.dataset(name).digests():
            if corpus.lake.version(name).ref.digest != digest:
                run(capsys, "dataset", "erase", f"{name}@{digest}", "--lake", lake)
    after = asked(listed)
    assert after["held"] == [] and after["unknown"] == []
    assert {one["ref"]: one["rows"] for one in after["erased"]} == {
        one["ref"]: one["rows"] for one in before["held"] if one["rows"]
    }
    made = {one["ref"] for one in before["made"]}
    assert any("checkpoint:quality" in ref for ref in made) and made <= {one["ref"] for one in after["made"]}
    assert "by ticket 7: the photographer asked" in after["takedowns"][0]
    # Another list that names a part of it is answered too, and one of other rows is not.
    by_id = asked(_file(tmp_path / "id.txt", [f"hash:{row['sample_id']}"]))
    assert {one["ref"] for one in by_id["erased"]} >= {str(corpus.versions["latents"].ref)}
    by_host = asked(_file(tmp_path / "host.txt", [f"domain:{urlsplit(row['url']).hostname}"]))
    assert {one["ref"] for one in by_host["erased"]} >= {str(corpus.versions["links"].ref)}
    other = asked(_file(tmp_path / "other.txt", ["hash:1"]))
    assert other["erased"] == [] and other["made"] == [] and other["takedowns"] == []
    # It holds hashes only, and does not change.
    for path in (tmp_path / "lake" / "takedowns").rglob("*"):
        assert path.is_dir() or not any(
            text.encode() in path.read_bytes() for text in (row["url"], row["caption"], urlsplit(row["url"]).hostname)
        )
    record = next((tmp_path / "lake" / "takedowns").glob("*.record.json"))
    record.write_bytes(record.read_bytes().replace(b"ticket 7", b"ticket 8"))
    assert main(["lineage", "impact", "--hashes", listed, "--lake", lake]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_damaged_manifest_is_named_and_the_rest_is_answered(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, row = corpus.lake.uri, corpus.rows["latents"][0]
    scores = Path(corpus.versions["scores"].uri) / "manifest.json"
    scores.write_bytes(scores.read_bytes()[:-5])
    listed = _file(tmp_path / "list.txt", [f"hash:{row['sample_id']}"])
    for command in (
        ["lineage", "impact", "--hashes", listed],
        ["lineage", "up", "latents"],
        ["lineage", "down", "images"],
        ["lineage", "page", "latents", "--out", str(tmp_path / "page.html")],
        ["dataset", "remove", "latents", "--hashes", listed],
    ):
        assert main([*command, "--lake", lake]) == 3, command
        printed = capsys.readouterr()
        assert str(scores) in printed.out + printed.err, command
        assert "latents" in printed.out or (tmp_path / "page.html").exists()


@pytest.mark.parametrize("value", ['"parents": 5', '"parents": []', '"parents": ["model:x@00000000"]', '"parents": {}'])
def test_a_checkpoint_whose_record_was_changed_by_hand_is_damaged(
    corpus: Corpus, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = Path(corpus.lake.uri) / "checkpoints" / "quality" / "step-00000001" / "COMPLETE.json"
    document = json.loads(complete.read_text())
    complete.write_text(json.dumps(document | json.loads(f"{{{value}}}")))
    assert main(["lineage", "up", "latents", "--lake", corpus.lake.uri]) == 3
    assert f"{complete}" in (error := capsys.readouterr().err) and "is damaged" in error
    assert main(["lineage", "up", "alignment", "--lake", corpus.lake.uri]) == 3


@pytest.mark.parametrize("option", ["--urls", "--hashes"])
@pytest.mark.parametrize("entry", ["http://a.example/1.jpg", "https://a.example/1.jpg", "url:http://a.example/1"])
def test_an_entry_in_place_of_a_file_is_explained(
    corpus: Corpus, option: str, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", "impact", option, entry, "--lake", corpus.lake.uri]) == 2
    error = capsys.readouterr().err
    assert (
        f"list {entry}: is an entry itself" in error and f"echo 'url:{entry.removeprefix('url:')}' > list.txt" in error
    )


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_line_ends_blank_lines_and_comments_do_not_matter(tmp_path: Path, mark: str, end: str) -> None:
    path = tmp_path / "list.txt"
    lines = [
        f"{mark}hash:5",
        "",
        "# why",
        "  url:http://a.example/x \t",
        "   ",
        "sha256:" + "A" * 64,
        "domain:B.example",
    ]
    path.write_bytes(end.join(lines).encode())
    wanted = read_list(str(path))
    assert wanted.lines == ("hash:5", "url:http://a.example/x", "sha256:" + "A" * 64, "domain:B.example")
    assert wanted.sample_ids.to_pylist() == [5] and wanted.images.to_pylist() == ["a" * 64]
    path.write_bytes(end.join([f"{mark}http://a.example/x", "", "# why", "http://b.example/"]).encode())
    assert read_urls(str(path)).lines == ("url:http://a.example/x", "url:http://b.example/")


def test_a_removal_is_widened_to_the_same_bytes_and_to_what_looks_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    draw = random.Random(0)
    hashed = draw.getrandbits(62) | (1 << 40) - 1  # enough bits to recognise an image by
    rows = [
        {**_row(n, draw), "sample_id": n, "url": f"http://h.example/{n}", "final_url": None, "image_sha256": image(n)}
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
    listed = _file(tmp_path / "list.txt", ["url:http://h.example/5"])
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
