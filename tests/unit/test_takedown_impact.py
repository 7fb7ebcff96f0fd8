"""What holds listed rows and what was made from them, also after erasing and next to damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import read_list, take_down
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.impact import impact
from altdiffusion.storage.holdings import search
from tests.takedown_rows import Corpus, corpus, run, write_list

__all__ = ["corpus"]


def test_impact_lists_what_holds_the_rows_and_what_was_made_from_them(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = corpus.rows["latents"][0]
    listed = write_list(tmp_path / "list.txt", [f"hash:{row['sample_id']}"])
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
    nowhere = write_list(tmp_path / "other.txt", ["hash:1"])
    assert "nothing in this lake" in run(capsys, "lineage", "impact", "--hashes", nowhere, "--lake", corpus.lake.uri)


def test_a_row_that_was_rejected_on_the_way_counts_against_nothing_after(corpus: Corpus, tmp_path: Path) -> None:
    images = {row["sample_id"] for row in corpus.rows["images"]}
    row = next(row for row in corpus.rows["links"] if row["sample_id"] not in images)
    wanted = read_list(write_list(tmp_path / "list.txt", [f"hash:{row['sample_id']}"]))
    found = impact(graphs.scan(corpus.lake.uri), search(corpus.lake, wanted))
    assert [(held.node.name, held.rows, held.rejected) for held in found.held] == [("images", 0, 1), ("links", 1, 0)]
    assert found.made == ()


def test_an_answer_that_cannot_be_complete_is_marked(corpus: Corpus, tmp_path: Path) -> None:
    version = corpus.versions["latents"]
    shard = Path(version.shard_uri(0))
    data = shard.read_bytes()
    shard.unlink()
    wanted = read_list(write_list(tmp_path / "list.txt", [f"hash:{corpus.rows['latents'][-1]['sample_id']}"]))
    found = impact(graphs.scan(corpus.lake.uri), search(corpus.lake, wanted))
    assert [shard.name in text for text in found.unknown] == [True]
    assert {held.node.name for held in found.held} >= {"images", "links"}
    with pytest.raises(AltDiffusionError, match=r"is missing.*verify"):
        take_down(corpus.lake, version, wanted)
    assert corpus.lake.version("latents").ref == version.ref
    shard.write_bytes(data)
    assert take_down(corpus.lake, version, wanted)[0].rows == 1


def test_the_record_answers_after_everything_was_erased(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, row = corpus.lake.uri, corpus.rows["latents"][0]
    listed = write_list(tmp_path / "list.txt", [f"url:{row['url']}", f"sha256:{row['image_sha256']}"])

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
    by_id = asked(write_list(tmp_path / "id.txt", [f"hash:{row['sample_id']}"]))
    assert {one["ref"] for one in by_id["erased"]} >= {str(corpus.versions["latents"].ref)}
    by_host = asked(write_list(tmp_path / "host.txt", [f"domain:{urlsplit(row['url']).hostname}"]))
    assert {one["ref"] for one in by_host["erased"]} >= {str(corpus.versions["links"].ref)}
    other = asked(write_list(tmp_path / "other.txt", ["hash:1"]))
    assert other["erased"] == [] and other["made"] == [] and other["takedowns"] == []
    # It holds hashes only, and does not change.
    for path in (tmp_path / "lake" / "takedowns").rglob("*"):
        assert path.is_dir() or not any(
            text.encode() in path.read_bytes() for text in (row["url"], row["caption"], urlsplit(row["url"]).hostname)
        )
    record = next((tmp_path / "lake" / "takedowns").glob("*.record.json"))
    record.write_bytes(record.read_bytes().replace(b"ticket 7", b"ticket 8"))
    assert main(["lineage", "impact", "--hashes", listed, "--lake", lake]) == 3
    assert "is damaged: its SHA-256 is not its name" in capsys.readouterr().out


def test_a_damaged_manifest_is_named_and_the_rest_is_answered(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, row = corpus.lake.uri, corpus.rows["latents"][0]
    scores = Path(corpus.versions["scores"].uri) / "manifest.json"
    scores.write_bytes(scores.read_bytes()[:-5])
    listed = write_list(tmp_path / "list.txt", [f"hash:{row['sample_id']}"])
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


def test_a_damaged_record_is_named_and_the_rest_is_answered(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, listed = corpus.lake.uri, write_list(tmp_path / "list.txt", [f"hash:{corpus.rows['links'][0]['sample_id']}"])
    assert main(["dataset", "remove", "--hashes", listed, "--yes", "--lake", lake]) in (0, 3)
    (record,) = Path(lake, "takedowns").glob("*.record.json")
    record.write_text('{"format": 7}')
    capsys.readouterr()
    assert main(["lineage", "impact", "--hashes", listed, "--lake", lake]) == 3
    printed = capsys.readouterr().out
    assert record.name in printed and "holds the rows:" in printed
    assert main(["dataset", "remove", "--hashes", listed, "--lake", lake]) == 3
    assert record.name in capsys.readouterr().err
    assert main(["dataset", "remove", "--hashes", listed, "--yes", "--lake", lake]) == 2  # not without a record
    assert "is damaged" in capsys.readouterr().err
