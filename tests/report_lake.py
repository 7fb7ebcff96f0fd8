"""A lake with a whole curation in it, from candidates to images without duplicates, for tests of its report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from altdiffusion.execution.reject_reasons import rejects_table
from altdiffusion.records import DROPS, IMAGES, LINKS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Dataset, Lake, Version
from altdiffusion.storage.ledger import UnitRecord, count
from altdiffusion.tally import tally

LANGUAGES = ("en", "ar", "th")
NASTY = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "\u202egnp.exe\u202c and \u2067more",
    "e" + "\u0301" * 300,
    "</p></figcaption></main><style>*{display:none}</style>",
    "word " * 2000,
    "&lt;b&gt; \x07\x1b[31m \ufeff",
)
UNSAFE = "unsafe caption 7b1f"
SECRET = "http://secret.example/"  # rows that must not be named
SOURCE = Ref("source", "crawl", "a" * 64)


def image(seed: int) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(values).resize((48, 64)).save(out, "PNG")
    return out.getvalue()


BODIES = [image(seed) for seed in range(8)]


def table(schema: pa.Schema, columns: Mapping[str, Any], rows: int) -> pa.Table:
    return pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema],
        schema=schema,
    )


def links(ids: Sequence[int]) -> pa.Table:
    columns = {
        "sample_id": ids,
        "url": [f"http://{'big' if k % 4 else 'small'}.example/{k}.jpg" for k in ids],
        "caption": [NASTY[k % 50] if k % 50 < len(NASTY) else UNSAFE if k % 10 == 9 else f"caption {k}" for k in ids],
        "language": [LANGUAGES[k % 3] for k in ids],
        "language_score": [1.0 if k % 5 else 0.6 for k in ids],
        "source_language": [None if k % 7 == 0 else "xx" if k % 7 == 1 else LANGUAGES[(k % 3) * (k % 2)] for k in ids],
        "width": [300 + k for k in ids],
        "height": [200 if k % 11 else None for k in ids],
        "similarity": [0.25 + (k % 20) / 100 for k in ids],
        "punsafe": [0.9 if k % 10 == 9 else 0.1 for k in ids],
        "source": ["crawl"] * len(ids),
    }
    return table(LINKS, columns, len(ids))


def images(ids: Sequence[int]) -> pa.Table:
    base = links(ids)
    columns = {name: base[name].combine_chunks() for name in base.column_names}
    columns |= {
        "image": [BODIES[k % len(BODIES)] for k in ids],
        "image_format": ["png"] * len(ids),
        "image_sha256": [f"{k:064x}" for k in ids],
        "hash_verdict": [("match", "drift", None)[k % 3] for k in ids],
        "color_profile": [("same", None, None, "converted", "broken")[k % 5] for k in ids],
        "phash": ids,
        **{f"{kind}_{side}": [n] * len(ids) for kind in ("original", "stored") for side, n in SIDES.items()},
    }
    return table(IMAGES, columns, len(ids))


SIDES = {"width": 48, "height": 64}


def reject_rows(unit: str, rows: Mapping[str, Sequence[int]], urls: Mapping[str, str] | None = None) -> pa.Table:
    flat = [(reason, k) for reason, ids in rows.items() for k in ids]
    return rejects_table(
        unit,
        row=list(range(len(flat))),
        reason=[reason for reason, _ in flat],
        sample_id=[k for _, k in flat],
        url=[(urls or {}).get(reason, f"http://big.example/{reason}/") + str(k) for reason, k in flat],
        language=[("hu", "en", "cs")[k % 3] for _, k in flat],
        detail=[NASTY[k % len(NASTY)] for _, k in flat],
    )


def publish(
    dataset: Dataset,
    kind: Kind,
    shards: Sequence[pa.Table],
    rejects: pa.Table,
    *,
    parents: Sequence[Ref],
    config: Mapping[str, Any] | None = None,
    tallied: bool = False,
) -> Version:
    record = UnitRecord(
        unit_id="u",
        index=0,
        input_digest="d",
        rows_in=sum(shard.num_rows for shard in shards) + rejects.num_rows,
        shards=tuple(dataset.write_shard(shard, row_group_rows=16) for shard in shards),
        rejects=(dataset.write_rejects(rejects),) if rejects.num_rows else (),
        rejects_by_reason=count(rejects["reason"]),
        rows_by_language=count(pa.concat_tables(shards)["language"]),
        tally=tally(pa.concat_tables(shards)) if tallied else {},
    )
    return dataset.publish(kind=kind, records=[record], parents=parents, config=config or {}, fingerprint="f" * 64)


@dataclass(frozen=True)
class Made:
    """A lake with the whole way in it."""

    lake: Lake
    candidates: Version
    links: Version
    downloaded: Version
    retried: Version
    distinct: Version


SELECT = {"language": range(1000, 1040), "blocklist": range(2000, 2004), "punsafe": range(2100, 2103)}
HIDDEN = {"blocklist": SECRET, "punsafe": SECRET}


def make(root: str, *, tallied: bool = True) -> Made:
    """Make 400 candidates, 380 links, 300 images, then 340 after a retry, 330 after duplicates are gone."""
    lake = Lake(root)
    config = {"language": {"languages": list(LANGUAGES)}}
    ids = list(range(400))
    candidates = publish(
        lake.dataset("candidates"),
        "links",
        [links(ids[:250]), links(ids[250:])],
        reject_rows("s", SELECT, HIDDEN),
        parents=[SOURCE],
        config=config,
    )
    distinct_links = publish(
        lake.dataset("links"),
        "links",
        [links(ids[:380])],
        reject_rows("d", {"duplicate_url": ids[380:]}),
        parents=[candidates.ref],
        config={"buckets": 8},
        tallied=tallied,
    )
    shown = lake.dataset("images")
    downloaded = publish(
        shown,
        "images",
        [images(ids[:300])],
        reject_rows("i", {"timeout": ids[300:345], "http_404": ids[345:380]}),
        parents=[distinct_links.ref],
    )
    lost = {"timeout": ids[340:345], "http_404": ids[345:380]}
    retried = publish(
        shown, "images", [images(ids[:300]), images(ids[300:340])], reject_rows("r", lost), parents=[downloaded.ref]
    )
    dropped = {"near_duplicate": [7, 8, 9, 10, 11, 12], "duplicate_image": [20, 21, 22, 23]}
    gone = [k for ids_ in dropped.values() for k in ids_]
    rows = {
        "shard": [0] * len(gone),
        "row": gone,
        "sample_id": gone,
        "language": [LANGUAGES[k % 3] for k in gone],
        "reason": [reason for reason, ids_ in dropped.items() for _ in ids_],
        "survivor": [k + 100 for k in gone],
    }
    drops = publish(
        lake.dataset("drops"), "drops", [table(DROPS, rows, len(gone))], reject_rows("k", {}), parents=[retried.ref]
    )
    stay = [k for k in ids[:300] if k not in gone]
    distinct = publish(
        shown,
        "images",
        [images(stay), images(ids[300:340])],
        reject_rows("r", {**lost, **dropped}),
        parents=[retried.ref, drops.ref],
    )
    return Made(lake, candidates, distinct_links, downloaded, retried, distinct)
