"""A curation with everything switched on: balance, retries, duplicates among images, report."""

from __future__ import annotations

import json
from pathlib import Path

from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import damages_of
from tests.e2e.conftest import Workspace, digests, images, prepared

__all__ = ["images", "prepared"]  # fixtures of the end-to-end tests

OPTIONS = (
    "balance={rows_per_language: 9, temperature: 2, similarity_quantile: 0.05}",
    "retry={passes: 2, reasons: [http_5xx, connect]}",
    "distinct={buckets: 3}",
)


def test_every_step_follows_from_the_one_before(prepared: Workspace, images: str, tmp_path: Path) -> None:
    done = prepared.job("curate", "curate", f"lake={tmp_path}", images, *OPTIONS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lake = Lake(str(tmp_path))
    head = lake.version("images")
    chain = [head]
    while chain[-1].manifest.parent_refs[0].name == "images":
        chain.append(lake.version(chain[-1].manifest.parent_refs[0]))
    assert [next(iter(v.manifest.config)) for v in chain[:1]] == ["distinct"]
    assert [v.manifest.config.get("pass") for v in chain] == [None, 2, 1, None]
    assert chain[-1].manifest.parent_refs[0] == lake.version("balanced").ref
    rows = lake.version("balanced").rows
    for version in chain:  # nothing is lost on the way, whatever is carried
        assert version.rows + sum(version.manifest.rejects_by_reason.values()) == rows
        assert damages_of(version) == []
    assert chain[1].manifest.rejects_by_reason == chain[3].manifest.rejects_by_reason  # these hosts stay broken
    assert set(chain[1].shards) == set(chain[3].shards)
    assert set(head.shards) & set(chain[3].shards), "untouched shards are shared"
    balanced = lake.version("balanced").manifest.rejects_by_reason
    assert balanced["balance"] > 0 and balanced["similarity_quantile"] > 0
    page = Path(head.uri) / "report.html"
    assert page.stat().st_size > 10_000 and "near_duplicate" not in head.manifest.rejects_by_reason
    copies = {path.read_bytes() for path in tmp_path.rglob("report.html")}
    assert len(copies) == 1, "with the dataset, as MLflow's artifact, and in the lake's copy of what was logged"
    assert len(list(tmp_path.rglob("report.html"))) == 3

    before = digests(tmp_path)
    again = prepared.job("curate", "curate", f"lake={tmp_path}", images, *OPTIONS)
    assert again.returncode == 0 and "already there" in again.stdout
    assert digests(tmp_path) == before
    head_file = json.loads((tmp_path / "datasets/images/head.json").read_text())
    assert head_file["digest"] == head.ref.digest
