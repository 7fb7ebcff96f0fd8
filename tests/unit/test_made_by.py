"""The name of the pipeline step next to a manifest: who writes it, who reads it, and that nothing depends on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from altdiffusion import cli
from altdiffusion.curation.report.chain import read_chain
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import MADE_BY, Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from tests import toy_work
from tests.report_lake import Made, images, make, publish, reject_rows

SETTINGS = {"a": 1}


def kept(version: Version) -> Path:
    return Path(version.uri) / MADE_BY


def note(version: Version, name: Any) -> None:
    kept(version).write_text(json.dumps({"pipeline_step": name}))


def test_a_pipeline_step_leaves_its_name_which_no_digest_covers(tmp_path: Path) -> None:
    digest = toy_work.run(str(tmp_path / "lake"), SETTINGS)
    version = Lake(str(tmp_path / "lake")).version(toy_work.NAME)
    assert version.made_by == "toy" and kept(version).read_bytes() == b'{"pipeline_step":"toy"}'
    kept(version).unlink()  # as in a lake of before
    assert toy_work.run(str(tmp_path / "lake"), SETTINGS) == digest
    assert Lake(str(tmp_path / "lake")).version(toy_work.NAME).made_by is None
    toy_work.run(str(tmp_path / "lake"), {"a": 2})
    version = Lake(str(tmp_path / "lake")).version(toy_work.NAME)
    files.copy_tree(str(tmp_path / "lake"), str(tmp_path / "copy"))
    assert Lake(str(tmp_path / "copy")).version(toy_work.NAME).made_by == "toy"
    erased = f"{toy_work.NAME}@{digest}"
    assert cli.main(["dataset", "erase", erased, "--lake", str(tmp_path / "lake")]) == 0
    assert [path.parent.name for path in (tmp_path / "lake").rglob(MADE_BY)] == [version.ref.digest]


def test_the_name_is_there_before_the_version_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_if_absent = files.put_if_absent

    def dies(uri: str, data: bytes) -> bool:
        if uri.endswith("manifest.json"):
            raise KeyboardInterrupt
        return put_if_absent(uri, data)

    dataset = Lake(str(tmp_path)).dataset("links")
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=0)
    given: dict[str, Any] = {"kind": "links", "records": [record], "parents": [], "config": {}, "fingerprint": "f"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "put_if_absent", dies)
        dataset.publish(**given, made_by="select")
    assert dataset.digests() == [] and len(list(tmp_path.rglob(MADE_BY))) == 1
    plain = dataset.publish(**given)
    assert plain.ref == dataset.publish(**given, made_by="other").ref  # the first name stays
    assert plain.made_by == "select"


def test_a_takedown_leaves_its_name(tmp_path: Path) -> None:
    made = make(str(tmp_path))
    (tmp_path / "list").write_text("hash:100\n")
    listed = str(tmp_path / "list")
    assert cli.main(["dataset", "remove", "images", "--hashes", listed, "--lake", str(tmp_path)]) == 0
    after = made.lake.version("images")
    assert after.made_by == "takedown" and read_chain(made.lake, after).steps[-1].name == "takedown"


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"pipeline_step": "../x"}', b"\xff"])
def test_a_damaged_name_is_found_and_only_it_is_forgotten(tmp_path: Path, damage: bytes, capsys: Any) -> None:
    toy_work.run(str(tmp_path), SETTINGS)
    version = Lake(str(tmp_path)).version(toy_work.NAME)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    kept(version).write_bytes(damage)
    verify = ["dataset", "verify", toy_work.NAME, "--lake", str(tmp_path)]
    assert cli.main(verify) == 1 and MADE_BY in capsys.readouterr().err
    assert cli.main([*verify, "--forget"]) == 1
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [p for p in before if p != kept(version)]
    assert cli.main(verify) == 0


def names(made: Made, version: Version) -> list[str]:
    return [step.name for step in read_chain(made.lake, version).steps]


def test_the_chain_reads_names_and_guesses_where_there_are_none(tmp_path: Path) -> None:
    made = make(str(tmp_path))
    guessed = ["select", "deduplicate", "download", "retry", "distinct"]
    assert names(made, made.distinct) == guessed
    lost: Mapping[str, Any] = {"timeout": range(340, 345), "http_404": range(345, 380)}
    vain = publish(  # the retry of a retry recovers nothing, which looks like a change
        made.lake.dataset("images"), "images", [images(range(340))], reject_rows("v", lost), parents=[made.retried.ref]
    )
    assert names(made, vain)[-1] == "change"
    note(vain, "retry")
    chain = read_chain(made.lake, made.lake.version(vain.ref))
    assert (chain.steps[-1].name, chain.steps[-1].rows_in, chain.steps[-1].rows_out) == ("retry", 40, 0)
    assert chain.adds_up and [step.name for step in chain.final_steps] == ["select", "deduplicate", "retry"]
    note(made.links, "balance")
    assert names(made, made.distinct)[1] == "balance"
    shutil.rmtree(tmp_path / "datasets/candidates")
    assert names(made, made.distinct)[0] == "balance"  # nothing in its manifest would show that


@pytest.mark.parametrize("forged", ["select", "download", "retry", "distinct", "takedown", "x" * 200, "deduplicate"])
def test_a_forged_name_changes_no_number(tmp_path: Path, forged: str) -> None:
    made = make(str(tmp_path))
    before = read_chain(made.lake, made.distinct)
    for version in (made.candidates, made.links, made.downloaded, made.distinct):
        note(version, forged)
    after = read_chain(made.lake, made.lake.version(made.distinct.ref))
    assert (after.read, after.kept, after.dropped, after.adds_up) == (447, 330, 117, True)
    for old, new in zip(before.steps, after.steps, strict=True):
        assert (new.rows_in, new.reasons, new.same_account) == (old.rows_in, old.reasons, old.same_account)
    assert all(step.name != "retry" for step in after.steps if step.version.ref != made.retried.ref)


@pytest.mark.parametrize("forged", ["../../victim", "", "a/b", "a b", None, 1, [], {}, "x" * 201, "é"])
def test_what_is_not_a_plain_name_is_refused(tmp_path: Path, forged: Any) -> None:
    made = make(str(tmp_path))
    note(made.links, forged)
    with pytest.raises(AltDiffusionError, match=f"{MADE_BY}.*is damaged.*plain name"):
        read_chain(made.lake, made.distinct)
