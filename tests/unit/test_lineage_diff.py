"""`lineage diff`: what differs between two things is named with both values, and what is equal is not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altdiffusion.cli import main
from altdiffusion.evaluation.outcomes import Case, Outcomes
from altdiffusion.evaluation.retrieval_accuracy import score
from altdiffusion.evaluation.table import Report
from altdiffusion.refs import Ref
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.seals import with_checksum
from tests.lineage_lake import BASE, SmallLake, checkpoint, publish


@dataclass(frozen=True, kw_only=True)
class Larger:
    """The small lake, with a second version of latents, and a run that was trained on it."""

    small: SmallLake
    other: Version
    trained: Ref


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Larger:
    small = SmallLake(tmp_path_factory.mktemp("lake"))
    rows = [
        {"sample_id": number, "language": language, "caption": "x", "image_sha256": "0" * 64}
        for number, language in ((101, "de"), (102, "ja"), (900, "ja"), (901, "th"))
    ]
    parents = [small.images.ref, Ref("model", "base", "c" * 64)]
    other = publish(small.lake, "latents", "latents", rows, parents)
    trained = checkpoint(small.lake, "other", 100, "alignment", [BASE, other.ref], {"loss": 0.75})
    return Larger(small=small, other=other, trained=trained)


def diff(
    made: Larger | SmallLake, capsys: pytest.CaptureFixture[str], a: object, b: object, *options: str
) -> dict[str, Any]:
    capsys.readouterr()
    uri = made.uri if isinstance(made, SmallLake) else made.small.uri
    status = main(["lineage", "diff", str(a), str(b), "--lake", uri, "--json", *options])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (0 if value["equal"] else 1)
    return value


@pytest.mark.parametrize("ref", ["latents", "quality", "alignment", "generations", "export:quality/step-00000100"])
def test_a_thing_is_equal_to_itself(larger: Larger, capsys: pytest.CaptureFixture[str], ref: str) -> None:
    found = diff(larger, capsys, ref, ref)
    assert found["equal"]
    for part in ("config", "data", "languages", "code", "made_from", "metrics", "evaluations"):
        assert found[part] == []


def test_two_versions_differ_in_rows_languages_and_parents(larger: Larger, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(larger, capsys, larger.small.latents.ref, larger.other.ref)
    (pair,) = found["data"]
    assert (pair["a"]["rows"], pair["b"]["rows"]) == (3, 4)
    assert pair["languages"] == [{"key": "en", "a": 1}, {"key": "ja", "a": 1, "b": 2}, {"key": "th", "b": 1}]
    assert pair["rows"] == {"only_a": {"rows": 1, "ids": [100]}, "only_b": {"rows": 2, "ids": [900, 901]}}
    assert found["languages"] == [{"key": "en", "a": 1}, {"key": "th", "b": 1}]
    assert found["made_from"] == [{"key": "model:base", "a": "b" * 64, "b": "c" * 64}]
    assert found["equal_datasets"] == ["images", "links"] and found["config"] == []
    capped = diff(larger, capsys, larger.small.latents.ref, larger.other.ref, "--max-rows", "3")
    assert "4 rows" in capped["data"][0]["rows_not_compared"]
    assert (
        main(["lineage", "diff", str(larger.small.latents.ref), str(larger.other.ref), "--lake", larger.small.uri]) == 1
    )
    text = capsys.readouterr().out
    assert "only in B: 2 rows (900, 901)" in text and "ja 1 | 2" in text and "th (not set) | 1" in text


def test_shards_that_both_share_do_not_count_as_differences(
    larger: Larger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version after a takedown differs in exactly the rows that were taken down."""
    own = SmallLake(tmp_path / "lake")
    listed = tmp_path / "list.txt"
    listed.write_text("hash:101\n")
    assert main(["dataset", "remove", "links", "--hashes", str(listed), "--lake", own.uri]) == 0
    found = diff(own, capsys, own.links.ref, "links")
    (pair,) = found["data"]
    assert pair["rows"] == {"only_a": {"rows": 1, "ids": [101]}, "only_b": {"rows": 0, "ids": []}}
    assert {one["key"] for one in found["config"]} == {"of", "threshold", "takedown"}


def test_two_runs_differ_in_config_data_and_metrics(larger: Larger, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(larger, capsys, "alignment", "other")
    assert found["config"] == [] and found["metrics"] == [{"key": "loss", "a": 0.5, "b": 0.75}]
    assert [pair["name"] for pair in found["data"]] == ["latents"]
    found = diff(larger, capsys, "quality", "other")
    assert {"key": "stage", "a": "quality", "b": "alignment"} in found["config"]
    assert {"key": "checkpoint:alignment/step-00000100", "a": larger.small.alignment.digest} in found["made_from"]


def test_evaluations_of_equal_protocol_are_compared_case_by_case(
    larger: Larger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    codes = ("en", "th")
    cases = [Case(concept=f"c{k}", language=code, group="pictures") for k in range(100) for code in codes]
    for run, ref, wrong, steps in (("alignment", larger.small.alignment, 0, 50), ("other", larger.trained, 20, 50)):
        folder = files.join(larger.small.uri, "exports", run, "step-00000100")
        content = files.sha256_hex(run.encode())
        lineage = with_checksum({"parents": [str(ref)], "stage": "alignment", "content": content})
        files.write_atomic(files.join(folder, "lineage.json"), files.canonical_json(lineage))
        right = np.array([float(k >= wrong or code == "en") for k in range(100) for code in codes])
        ids = [f"{case.concept}-{case.language}" for case in cases]
        outcomes = Outcomes(ids=ids, cases=cases, images=np.ones(200, np.int64), right=right)
        report = Report(states=[score(run, outcomes)]).to_json()
        for name, count in ((run, steps), (f"{run}-more", steps + wrong + 1)):
            protocol = {"sampling": {"steps": count}}
            evaluations.write(
                larger.small.uri, name, report, {run: content}, protocol=protocol, outcomes=outcomes.table(run)
            )
    (found,) = diff(larger, capsys, "alignment", "other")["evaluations"]
    assert (found["a"], found["b"], found["protocols_differ"]) == ("alignment", "other", [])
    languages = found["change"]["languages"]
    assert languages["th"]["value"] == pytest.approx(-0.2) and languages["en"]["value"] == 0
    page = tmp_path / "change.html"
    assert main(["lineage", "diff", "alignment", "other", "--lake", larger.small.uri, "--page", str(page)]) == 1
    assert "-20.0 points [" in capsys.readouterr().out
    th = re.search(r"th Thai</th>(.*)</tr>", page.read_text())
    assert th is not None
    assert re.findall(r">([^<>]+)</td>", th[1])[::4] == ["100.0 % [96.3, 100.0]", "alignment/step-00000100"]
    assert "-20.0 [" in th[1] and "&lt; 0.001" in th[1] and "th: -20.0 points" in page.read_text()
    assert main(["lineage", "diff", "quality", "other", "--lake", larger.small.uri, "--page", str(page)]) == 2
    assert "the lake keeps no evaluations of both checkpoint" in capsys.readouterr().err
    files.remove_tree(files.join(larger.small.uri, "evaluations", "alignment.json"))
    (found,) = diff(larger, capsys, "alignment", "other")["evaluations"]
    assert found["change"] is None and found["protocols_differ"] == ["sampling.steps is 51 and 50"]


@pytest.mark.parametrize("ref", ["nothing-here", "model:base", "source:crawl"])
def test_what_cannot_be_compared_is_named(larger: Larger, capsys: pytest.CaptureFixture[str], ref: str) -> None:
    assert main(["lineage", "diff", "latents", ref, "--lake", larger.small.uri]) == 2
    assert ref in capsys.readouterr().err
