"""What a checkpoint has seen, against the samples that were really handed to the loop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.seen import seen
from tests import training_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = training_lake.make_lake(tmp_path_factory.mktemp("seen"), rows=50)
    training_lake.write_latents(where, "others", 23, seed=1)
    return where


@pytest.mark.parametrize("weights", [(None, None), (1.0, 3.0)])
def test_counts_are_those_of_every_batch(lake: str, weights: tuple[float | None, float | None]) -> None:
    names = ("latents", "others")
    config = training_lake.config(
        lake,
        run=f"mix-{weights[1] or 0:g}",
        datasets=[{"name": n, "weight": w} for n, w in zip(names, weights, strict=True)],
    )
    run_local(config, lake)
    order, _ = open_data(resolve(config, lake))
    for step in (9, 12):
        wanted: Counter[tuple[int, int]] = Counter()
        for n in range(step):
            batch = order.batch(n)
            wanted.update(zip(batch.part.tolist(), batch.row.tolist(), strict=True))
        parts = seen(lake, config.run, step)
        found: Counter[tuple[int, int]] = Counter()
        for number, part in enumerate(parts):
            for row, times in enumerate(part.times.tolist()):
                at = (number, row) if weights[0] is not None else (0, row + number * 50)
                found[at] = times
        assert +found == wanted
        assert sum(part.samples for part in parts) == step * config.global_batch


def test_a_later_stage_has_seen_what_its_start_saw(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = training_lake.config(lake, run="first")
    run_local(first, lake)
    second = training_lake.config(
        lake, run="second", stage="quality", start={"checkpoint": "first"}, datasets=[{"name": "others"}], steps=6
    )
    run_local(second, lake)
    parts = seen(lake, "second")
    assert [(part.run, part.steps, part.version.ref.name) for part in parts] == [
        ("second", 6, "others"),
        ("first", 12, "latents"),
    ]
    out = tmp_path / "seen.parquet"
    capsys.readouterr()
    assert main(["seen", "second", "--lake", lake, "--json", "--out", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    table = pq.read_table(out)
    assert sum(table["times"].to_pylist()) == sum(fact["samples"] for fact in facts) == (6 + 12) * 8
    assert table.num_rows == sum(fact["distinct"] for fact in facts)
    assert min(table["times"].to_pylist()) >= 1


def test_an_unknown_run_is_named(lake: str) -> None:
    with pytest.raises(AltDiffusionError, match="nobody"):
        seen(lake, "nobody")


def test_a_record_of_an_earlier_version_is_named(lake: str) -> None:
    run_local(training_lake.config(lake, run="older"), lake)
    uri = Path(lake) / "checkpoints/older/run.json"
    record = json.loads(uri.read_text())
    del record["student"]
    uri.write_text(json.dumps(record))
    with pytest.raises(AltDiffusionError, match=r'run\.json of run older.*earlier version.*add "student"'):
        seen(lake, "older")


def test_counts_stay_exact_when_the_rows_were_erased(
    tmp_path: Path, lake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training_lake.write_latents(lake, "gone", 40, seed=2)
    config = training_lake.config(lake, run="erased", datasets=[{"name": "gone"}])
    run_local(config, lake)
    before = Lake(lake).version("gone")
    wanted = {part.version.ref: (part.times.tolist(), part.by_language()) for part in seen(lake, "erased")}
    ids = before.read(["sample_id"])["sample_id"].to_pylist()[3:6]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"hash:{sample_id}\n" for sample_id in ids))
    assert main(["dataset", "remove", "gone", "--hashes", str(listed), "--lake", lake]) == 0
    assert main(["dataset", "erase", f"gone@{before.ref.digest}", "--lake", lake]) == 0
    found = {part.version.ref: (part.times.tolist(), part.by_language()) for part in seen(lake, "erased")}
    assert found == wanted
    capsys.readouterr()
    assert main(["seen", "erased", "--lake", lake, "--json"]) == 0
    (fact,) = json.loads(capsys.readouterr().out)
    times = wanted[before.ref][0][3:6]
    assert fact["erased"] and fact["taken_down"] == {
        "rows": 3, "distinct": sum(n > 0 for n in times), "samples": sum(times)
    }  # fmt: skip
    assert main(["seen", "erased", "--lake", lake, "--out", str(tmp_path / "seen.parquet")]) == 2
    assert "was erased" in capsys.readouterr().err


def test_another_digest_than_the_checkpoints_is_refused(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = training_lake.config(lake, run="named", steps=6)
    run_local(config, lake)
    digest = checkpoints.open_step(lake, "named", 6).digest
    assert main(["seen", f"named/step-00000006@{digest[:12]}", "--lake", lake]) == 0
    for verb in ("seen", "export"):
        assert main([verb, f"checkpoint:named/step-00000006@{'0' * 64}", "--lake", lake]) == 2
        error = capsys.readouterr().err
        assert f"has the digest {digest[:12]}" in error and "@000" in error
