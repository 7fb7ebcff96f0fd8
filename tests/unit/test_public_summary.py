"""The public summary of training content: what manifests hold is in it, and the rest is marked for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.documents.public_summary import MARK, public_summary
from altdiffusion.documents.training_content import Domains, TrainingContent, training_content
from altdiffusion.lineage.graph import scan
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.erasure import erase
from tests import report_lake
from tests.lineage_lake import BASE, SOURCE, SmallLake, checkpoint, publish

HEADINGS = (
    "## 1. General information", "### 1.1. Provider identification", "### 1.2. Model identification",
    "### 1.3. Modalities, overall training data size and other characteristics", "## 2. List of data sources",
    "### 2.1. Publicly available datasets",
    "### 2.2. Private non-publicly available datasets obtained from third parties",
    "#### 2.2.1. Datasets commercially licensed by rightsholders or their representatives",
    "#### 2.2.2. Private datasets obtained from other third parties",
    "### 2.3. Data crawled and scraped from online sources", "### 2.4. User data", "### 2.5. Synthetic data",
    "### 2.6. Other sources of data", "## 3. Data processing aspects",
    "### 3.1. Respect of reservation of rights from text and data mining exception or limitation",
    "### 3.2. Removal of illegal content", "### 3.3. Other information (optional)",
)  # fmt: skip
"""Headings of the template in the Annex of C(2025) 8311 final."""


def content_of(lake: Lake, name: str) -> TrainingContent:
    return training_content(lake, name, scan(lake.uri))


@pytest.fixture
def small(tmp_path: Path) -> SmallLake:
    return SmallLake(tmp_path / "lake")


def test_the_headings_are_the_templates_and_nothing_is_invented(small: SmallLake) -> None:
    text = public_summary(content_of(small.lake, "quality"))
    assert [line for line in text.splitlines() if line.startswith("#")][1:-1] == list(HEADINGS)
    assert "C(2025) 8311 final" in text
    for field in ("Provider name", "Date of placement", "Latest date of data acquisition", "Period of data collection"):
        line = next(line for line in text.splitlines() if field in line)
        assert MARK in line, f"{field} is not in a manifest"
    assert small.uri not in text
    assert text == public_summary(content_of(Lake(small.uri), "quality/step-00000100"))


def test_it_covers_every_run_that_led_to_the_checkpoint(small: SmallLake) -> None:
    text = public_summary(content_of(small.lake, "quality"))
    assert f"`{small.latents.ref}`: 3 rows, read by training" in text
    assert "Less than 1 million images (3 images)" in text and "Less than 1 billion tokens (3 to 6 tokens)" in text
    assert f"base, digest `{BASE.digest}`" in text
    assert f"crawl, listing `{SOURCE}`" in text and "| th" not in text and "| ja Japanese | 1 |" in text
    assert "too_small" not in text, "neither an opt-out nor illegal content"


def web_lake(lake: Lake, hosts: dict[str, int]) -> Ref:
    """Publish images of some hosts, latents of them, and a checkpoint that was trained on these."""
    rows: list[dict[str, Any]] = []
    for host, number in hosts.items():
        rows += [
            {"sample_id": len(rows) + i, "url": f"https://{host}:443/{i}.png", "caption": "c", "language": "en"}
            for i in range(number)
        ]
    images = publish(lake, "web", "images", rows, [SOURCE])
    latents = publish(lake, "weblatents", "latents", rows, [images.ref])
    return checkpoint(lake, "web", 5, "alignment", [latents.ref], {})


def test_domains_are_the_top_tenth_by_rows(small: SmallLake, tmp_path: Path) -> None:
    hosts = {f"host{i}.example": i + 1 for i in range(15)}
    web_lake(small.lake, {**hosts, "BÜCHER.example": 20})
    domains = content_of(small.lake, "web").domains
    assert domains.rows == {**hosts, "xn--bcher-kva.example": 20}
    out, listed = tmp_path / "summary.md", tmp_path / "domains.tsv"
    assert main(["summary", "web", "--lake", small.uri, "--out", str(out), "--domains", str(listed)]) == 0
    assert listed.read_text() == "xn--bcher-kva.example\t20\nhost14.example\t15\n"
    text = out.read_text(encoding="utf-8")
    assert "the top 10 % of 16 host names" in text and "`domains.tsv`" in text and "| host14.example |" not in text
    assert "| host14.example | 15 |" in public_summary(content_of(small.lake, "web"))


def test_small_providers_list_a_twentieth_and_at_most_a_thousand() -> None:
    many = Domains(rows={f"h{i:05d}": 1 for i in range(40_000)}, unnamed=0, unread=())
    assert len(many.top()) == 4_000 and len(many.top(small_provider=True)) == 1_000
    few = Domains(rows={f"h{i}": 1 for i in range(40)}, unnamed=0, unread=())
    assert len(few.top()) == 4 and len(few.top(small_provider=True)) == 2


def test_opt_outs_and_published_sets_are_taken_from_configs_and_rejects(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    small = SmallLake(tmp_path)
    record = small.links.manifest
    links = lake.dataset("laion").publish(
        kind="links", records=[], parents=record.parent_refs, fingerprint="a" * 64,
        config={"sources": [{"source": {"name": "crawl", "preset": "relaion2b-en-research-safe",
                                        "blocklist_sha256": "9" * 64}}]},
    )  # fmt: skip
    reasons = {"opt_out:tdm-reservation": range(3), "punsafe": range(3, 5), "too_large": range(5, 14)}
    images = report_lake.publish(
        lake.dataset("pics"), "images", [report_lake.images([1, 2])], report_lake.reject_rows("u", reasons),
        parents=[links.ref], config={"download": {"honor_robots": True, "honor_opt_out": True, "min_side": 64}},
    )  # fmt: skip
    checkpoint(lake, "laion", 1, "alignment", [publish(lake, "lats", "latents", [], [images.ref]).ref], {})
    text = public_summary(content_of(lake, "laion"))
    assert "Used: yes\n- crawl, preset relaion2b-en-research-safe: https://laion.ai/blog/relaion-5b/" in text
    reserved, illegal = text.split("### 3.1.")[1].split("### 3.2.")
    assert "opt_out:tdm-reservation: 3 rows" in reserved and "honor_opt_out: True, honor_robots: True" in reserved
    assert "punsafe: 2 rows" in illegal and "too_large" not in text
    assert f"- blocklist of source crawl, SHA-256 `{'9' * 64}`" in text


def test_an_erased_version_is_named_and_its_links_are_not_guessed(small: SmallLake) -> None:
    publish(small.lake, "images", "images", [{"url": "http://new.example/1", "language": "en"}], [small.links.ref])
    erase(small.lake.dataset("images"), small.images)
    content = content_of(small.lake, "quality")
    assert content.domains.unread == (str(small.images.ref),) and not content.domains.rows
    text = public_summary(content)
    assert "erased, so that their links are not known" in text
    assert f"`{small.images.ref}`: 3 rows, erased since then" in text
    assert str(small.links.ref) in text and str(SOURCE) in text, "what it was made from is still known"


def test_what_a_models_folder_states_cannot_become_markup(tmp_path: Path) -> None:
    hub = "a`\n# heading"
    document = {"hub": hub, "licence": "openrail++", "digest": "d" * 64, "parents": []}
    files.write_atomic(str(tmp_path / "models" / "sd" / "lineage.json"), json.dumps(document).encode())
    lake = Lake(str(tmp_path))
    latents = publish(lake, "lats", "latents", [], [])
    checkpoint(lake, "run", 1, "alignment", [Ref("model", "sd", "d" * 64), latents.ref], {})
    text = public_summary(content_of(lake, "run"))
    assert "- sd, digest" in text and r"from `a\n# heading`; licence `openrail++`" in text and "\n# heading" not in text


def test_what_is_not_a_checkpoint_is_refused(small: SmallLake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "images", "--lake", small.uri]) == 2
    assert "names nothing in the lake" in capsys.readouterr().err
    assert main(["summary", "quality", "--lake", small.uri, "--date", "today"]) == 2
    assert "write it as YYYY-MM-DD" in capsys.readouterr().err
