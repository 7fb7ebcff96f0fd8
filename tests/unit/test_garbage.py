"""Files that no manifest names: found, kept for a running job, and deleted when they are old."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import read_list, take_down
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.erasure import erase
from altdiffusion.storage.garbage import find_garbage, leftovers
from altdiffusion.storage.takedown_proof import prove
from altdiffusion.storage.verification import verify
from tests import toy_work
from tests.toy_work import NAME, Toy, pipeline_step

DAYS = 3 * 86_400


def age(lake: Lake, seconds: float = DAYS) -> None:
    """Make every file of a lake older."""
    for path in Path(lake.uri).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def killed(lake: Lake) -> None:
    """Leave what a job leaves that was killed: two recorded units, the shard of a third one, a spill and a temporary
    file."""
    step = pipeline_step({"x": 2}, own=True)
    (output,) = step.outputs
    units = step.units(lake)
    for unit in units[:3]:
        record = step.work(lake).run(unit)  # type: ignore[union-attr]
        if unit.index < 2:
            output.ledger(lake).record(record)
    table = lake.version(NAME).read()
    Spill(lake.dataset(NAME)).add("u5", table)
    folder = Path(lake.uri) / "datasets" / NAME / "shards"
    (folder / ".tmp-123").write_bytes(next(folder.glob("*.parquet")).read_bytes())


def counted(lake: Lake) -> int:
    found, wrong = find_garbage(Lake(lake.uri))
    assert wrong == []
    return sum(len(one.files) for one in found)


def test_what_a_running_job_may_need_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(str(tmp_path / "lake"))
    version = lake.dataset(NAME).open(toy_work.run(lake.uri, {"x": 1}))
    assert leftovers(lake.dataset(NAME)) == []
    age(lake)
    killed(lake)
    # Three shards (the files of rejects have the same bytes as the version's), the spill and the temporary file.
    assert len(leftovers(lake.dataset(NAME))) == 5
    assert counted(lake) == 0  # all of it is new
    age(lake)
    folder = Path(lake.uri) / "datasets" / NAME / "ledger"
    os.utime(next(folder.rglob("*.json")))  # a unit has just been recorded: a job is running
    assert counted(lake) == 2  # the shard of the unit that was not recorded, and the temporary file
    age(lake)
    assert counted(lake) == 5
    assert main(["gc", "--lake", lake.uri]) == 0
    assert "nothing was deleted" in capsys.readouterr().out and counted(lake) == 5
    assert main(["gc", "--lake", lake.uri, "--older-than", "9d", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert main(["gc", "--lake", lake.uri, "--yes"]) == 0
    assert "deleted 5 files" in capsys.readouterr().out
    assert leftovers(lake.dataset(NAME)) == [] and verify(lake.dataset(NAME), version.ref.digest).damages == ()
    Toy.ran.clear()  # the killed job makes its units again
    toy_work.run(lake.uri, {"x": 2}, own=True)
    assert len(Toy.ran) == 6 and verify(lake.dataset(NAME)).damages == ()


def test_a_damaged_manifest_keeps_the_whole_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(str(tmp_path / "lake"))
    version = lake.dataset(NAME).open(toy_work.run(lake.uri, {"x": 1}))
    manifest = Path(version.uri) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-3])
    age(lake)
    assert main(["gc", "--lake", lake.uri, "--yes"]) == 3
    assert str(manifest) in capsys.readouterr().err
    assert len(list(Path(lake.uri).rglob("shards/*.parquet"))) == 6


def test_erasing_deletes_what_a_killed_job_has_left_of_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first = lake.dataset(NAME).open(toy_work.run(lake.uri, {"x": 1}))
    killed(lake)
    listed = tmp_path / "list.txt"
    listed.write_text(f"sha256:{toy_work.image(1, 2)}\n")
    assert main(["dataset", "remove", NAME, "--hashes", str(listed), "--lake", lake.uri]) == 0
    assert f"files of {NAME} that no manifest names" in capsys.readouterr().out
    assert take_down(lake, lake.version(NAME), read_list(str(listed)))[0].after is None
    assert not prove(lake).is_clean
    erase(lake.dataset(NAME), first)
    assert prove(lake).is_clean
    toy_work.run(lake.uri, {"x": 2}, own=True)
    assert prove(lake).is_clean and verify(lake.dataset(NAME)).damages == ()


@pytest.mark.parametrize("text", ["1", "d", "-1d", "1w"])
def test_an_age_has_a_unit(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gc", "--lake", str(tmp_path), f"--older-than={text}"])
    assert "is not an age" in capsys.readouterr().err
