"""What a checkpoint has seen, against the samples that were really handed to the loop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.order.mixture import Source
from altdiffusion.training.order.skips import batch_at
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.seen import open_checkpoint, pasts_of, seen
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


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("one", {"guards": {"skip_batches": [[2, 4], [7, 8]]}}),
        ("weights", {"datasets": [{"name": "latents", "weight": 1.0}, {"name": "others", "weight": 3.0}]}),
        ("spoken", {"datasets": [{"name": "spoken"}, {"name": "others"}], "order": {"language_temperature": 2.0}}),
    ],
)
def test_the_steps_that_drew_listed_rows_are_those_of_every_batch(
    name: str, changes: dict[str, Any], lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "spoken" not in Lake(lake).names():
        training_lake.write_latents(lake, "spoken", 31, seed=4, languages=("en", "de", "ja", "de"))
    config = training_lake.config(lake, run=f"drawn-{name}", **changes)
    run_local(config, lake)
    ids = [0, 3, 7, 11, 21, 30, 49]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"hash:{sample_id}\n" for sample_id in ids))
    order, _ = open_data(resolve(config, lake))
    (past,) = pasts_of(lake, open_checkpoint(lake, config.run))
    for step in (9, 12):
        wanted: dict[str, list[tuple[int, int]]] = {}
        for at in range(step):  # every batch, one by one
            batch = order.batch(batch_at(past.skips, at))
            for number, source in enumerate(past.sources):
                chosen = batch.row[batch.part == number].tolist()
                for version, row in (_row(source, row) for row in chosen):
                    if row in ids:  # sample_id is the row's number in these datasets
                        wanted.setdefault(version, []).append((at + 1, row))
        capsys.readouterr()
        assert main(["seen", f"{config.run}/step-{step:08d}", "--hashes", str(listed), "--lake", lake, "--json"]) == 0
        found = {part["dataset"]: part for part in json.loads(capsys.readouterr().out)["drawn"]}
        assert {ref for ref, part in found.items() if part["samples"]} == wanted.keys()
        assert main(["lineage", "impact", "--hashes", str(listed), "--lake", lake, "--json"]) == 0
        made = {one["ref"]: one for one in json.loads(capsys.readouterr().out)["made"]}
        impacted = made[str(open_checkpoint(lake, config.run, step).ref)]["drawn"]
        for ref, draws in wanted.items():
            part = found[ref]
            assert (part["samples"], part["first_step"], part["last_step"]) == (
                len(draws), min(draws)[0], max(draws)[0],
            )  # fmt: skip
            seen_rows = {r["row"]: (r["times"], r["first_step"]) for r in part["seen"] if r["times"]}
            rows = sorted({row for _, row in draws})
            assert seen_rows == {
                row: (sum(r == row for _, r in draws), min(s for s, r in draws if r == row)) for row in rows
            }
            assert {**part, "seen": None} in [{**one, "seen": None} for one in impacted]
        assert main(["seen", f"{config.run}/step-{step:08d}", "--hashes", str(listed), "--lake", lake]) == 0
        text = capsys.readouterr().out
        assert f"hash:{draws[0][1]}: " in text and f"to step {step} drew" in text


def _row(source: Source, row: int) -> tuple[str, int]:
    """Return the version that a row of a source is in, and its number there, by reading the column `language`."""
    for version in source.versions:
        spoken = version.read(["language"])["language"].to_pylist()
        numbers = [n for n, language in enumerate(spoken) if source.language in (None, language)]
        if row < len(numbers):
            return str(version.ref), numbers[row]
        row -= len(numbers)
    raise AssertionError("no such row")


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
