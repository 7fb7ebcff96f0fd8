"""Lakes whose every row is known, to take rows down from."""

from __future__ import annotations

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
from altdiffusion.records import REJECTS, SCHEMAS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.tally import tally
from altdiffusion.urls import url_key
from tests.lineage_lake import checkpoint

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
        made = [make_row(number, draw) for number in range(60)]
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


def make_row(number: int, draw: random.Random) -> Row:
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


def list_lines(corpus: Corpus, draw: random.Random) -> list[str]:
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


def write_list(path: Path, lines: Sequence[str]) -> str:
    path.write_text("# a request\n\n" + "\n".join(lines) + "\n")
    return str(path)


def places_of(version: Version, holdings: Any) -> list[int]:
    return sorted(int(version.shard_starts[index] + row) for index, rows in holdings.of(version) for row in rows)


def run(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 0
    return capsys.readouterr().out


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(3))
