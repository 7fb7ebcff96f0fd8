"""Golden unit ids and input digests: a ledger is keyed by them, so that no change of code may change them.

Renew (only with a change that is meant to do all work again): `python -m tests.unit.test_unit_ids`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altdiffusion.curation.config import BalanceConfig, CorpusConfig, DistinctConfig, DownloadConfig, SourceConfig
from altdiffusion.curation.download.download_work import plan_download
from altdiffusion.curation.download.retry import plan_retry
from altdiffusion.curation.encoding.encode_work import plan_encode
from altdiffusion.curation.images.duplicates import plan_distinct, plan_fingerprint
from altdiffusion.curation.links.balance_work import plan_balance
from altdiffusion.curation.links.sources import Part, SourceScan, plan_sources
from altdiffusion.curation.parallel.corpus import plan_corpora, scan_corpus
from altdiffusion.curation.scoring.score_work import plan_score
from altdiffusion.execution.ranges import plan_buckets, plan_ranges
from altdiffusion.execution.units import Unit
from altdiffusion.generation.prompts import prompts_units
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Manifest, Version
from altdiffusion.storage.shards import ShardInfo


def version(name: str, rows: Sequence[int], rejects: Sequence[int] = ()) -> Version:
    """Return a version that is nowhere: planning reads its manifest only."""

    def infos(role: str, counts: Sequence[int]) -> tuple[ShardInfo, ...]:
        return tuple(
            ShardInfo(
                sha256=files.sha256_hex(f"{name} {role} {place}".encode()), rows=count, bytes=count, row_group_rows=9
            )
            for place, count in enumerate(counts)
        )

    manifest = Manifest(
        format="1", name=name, kind="links", parents=(), config={}, fingerprint="f", code_version="0", schema=(),
        rows=sum(rows), rows_by_language={}, rejects_by_reason={}, tally={}, shards_table_sha256="0" * 64,
    )  # fmt: skip
    made = Version("memory://nowhere", manifest)
    made.shards, made.rejects = infos("shard", rows), infos("reject", rejects)
    return made


def scans() -> list[SourceScan]:
    part = [
        Part(uri="memory://a", name=name, digest=files.sha256_hex(name.encode()), group_rows=np.array(groups))
        for name, groups in (("one", (5, 5, 12)), ("two", (3,)))
    ]
    sources = [
        SourceConfig(name=name, preset="laion-base", uri="memory://a", rows_per_unit=8) for name in ("first", "second")
    ]
    return [SourceScan(config=source, parts=tuple(part)) for source in sources]


def corpora(folder: Path) -> list[Unit]:
    (folder / "a.tsv").write_text("one\teins\ntwo\tzwei\nthree\tdrei\n")
    config = CorpusConfig(
        name="pairs", uri=str(folder / "a.tsv"), format="tsv", language="de", english=0, translation=1, rows_per_unit=2
    )
    return plan_corpora([scan_corpus(config)])


def prompts(folder: Path) -> list[Unit]:
    (folder / "prompts.csv").write_text("id,prompt,language\na,ein Haus,de\n")
    return prompts_units(PromptsConfig(file=str(folder / "prompts.csv")))


IMAGES = version("images", (7, 0, 3), rejects=(4, 4, 9))
BUCKETED = version("bucketed", (4, 0, 2, 1, 5, 6))
DISTINCT = DistinctConfig(buckets=3, rows_per_unit=7)
MODELS = ("model:vae@1", "model:tokenizer@2")

PLANS: dict[str, Callable[[Path], Sequence[Unit]]] = {
    "ranges": lambda _: plan_ranges(IMAGES, 3, "model"),
    "select": lambda _: plan_sources(scans()),
    "dedup": lambda _: plan_buckets(BUCKETED, 3),
    "balance": lambda _: plan_balance(BUCKETED, BalanceConfig(rows_per_unit=2, rows_per_language=9))[0],
    "download": lambda _: plan_download(BUCKETED, 4),
    "retry": lambda _: plan_retry(BUCKETED, IMAGES, DownloadConfig(rows_per_unit=8)),
    "fingerprint": lambda _: plan_fingerprint(IMAGES, DISTINCT),
    "compare": lambda _: plan_buckets(BUCKETED, 3),
    "distinct": lambda _: plan_distinct(IMAGES, BUCKETED),
    "score": lambda _: plan_score(IMAGES, 3, *MODELS),
    "encode": lambda _: plan_encode(IMAGES, 3, *MODELS),
    "encode with scores": lambda _: plan_encode(IMAGES, 3, *MODELS, scores=BUCKETED),
    "pairs": corpora,
    "pair ids": lambda _: plan_buckets(BUCKETED, 3, *MODELS, chosen=range(2)),
    "pair ids held out": lambda _: plan_buckets(BUCKETED, 3, *MODELS, chosen=range(2, 3)),
    "prompts": prompts,
}
GOLDEN = {
    "ranges": "d29953f8a16baab7",
    "select": "783e6446c14eee23",
    "dedup": "b09bc9572e56e6fd",
    "balance": "291bd2a3018b6e14",
    "download": "9743d1e743bca7f1",
    "retry": "5a35b2ffb4afa949",
    "fingerprint": "d9ba63007dd84a93",
    "compare": "b09bc9572e56e6fd",
    "distinct": "9854b61b9174c2e0",
    "score": "11e9c7fa9ecace6f",
    "encode": "11e9c7fa9ecace6f",
    "encode with scores": "31051128e48527bb",
    "pairs": "b38920a6719c707a",
    "pair ids": "a69e7d222b78a84a",
    "pair ids held out": "16f8e35893190e5d",
    "prompts": "7967325755fa9735",
}


def digest(units: Sequence[Unit]) -> str:
    """Return the digest of what a ledger and a record keep of units."""
    assert units
    kept: list[Any] = [[unit.id, unit.index, unit.payload["input_digest"]] for unit in units]
    return files.sha256_hex(files.canonical_json(kept))[:16]


@pytest.mark.parametrize("name", PLANS)
def test_unit_ids_are_what_they_were(name: str, tmp_path: Path) -> None:
    assert digest(PLANS[name](tmp_path)) == GOLDEN[name]


if __name__ == "__main__":
    for name, plan in PLANS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f'    "{name}": "{digest(plan(Path(folder)))}",')
