"""Whatever happens to a run, the same command ends with the same bytes; and what is not whole is never used."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.write import write
from altdiffusion.training.config import StartConfig
from altdiffusion.training.faults import failures
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.continuing import continuation
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolve import finished
from altdiffusion.training.seen import seen
from tests.flipped import flip
from tests.full_disk import no_file_beyond
from tests.training_lake import Recorder, config, file_hashes, write_latents

ROOT = Path(__file__).parents[2]


def folder(lake: str, step: int, run: str = "align") -> Path:
    return Path(lake) / "checkpoints" / run / checkpoints.step_name(step)


@pytest.fixture(scope="module")
def undisturbed(pristine_lake: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the hashes of the last checkpoint's files of a run that nothing happened to, in another folder."""
    lake = str(shutil.copytree(pristine_lake, tmp_path_factory.mktemp("undisturbed") / "somewhere" / "else"))
    torch.set_num_threads(1)
    run_local(config(lake), lake, reporter=Recorder())
    return file_hashes(folder(lake, 12))


def test_killed_at_any_moment_and_resumed_equals_undisturbed(lake: str, undisturbed: dict[str, str]) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    certain = [
        "open:unet.safetensors:1",  # the checkpoint of step 3, half-written
        f"backward::{chance.choice([1, 3, 5])}",  # between the two micro-batches of an update
        "open:COMPLETE.json:1",  # the files are there, the checkpoint is not
        "os.rename::1",  # the same, a moment later
        "open:optimizer.safetensors:2",  # after a whole checkpoint, in the next one
    ]
    anytime = [f"after:{chance.uniform(0.05, 1.2):.3f}" for _ in range(5)]
    deaths = [*certain, *anytime, "open:state.json:1"]
    command = [sys.executable, str(ROOT / "tests" / "numerics" / "kills.py"), lake, *deaths]
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    for death, line in zip(certain, lines, strict=False):
        assert line == f"{death} killed", f"seed {seed}\n{done.stdout}"
    assert lines[-1] == "finished []", f"seed {seed}\n{done.stdout}"
    assert file_hashes(folder(lake, 12)) == undisturbed, f"seed {seed}"
    run_folder = folder(lake, 12).parent
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "journal",
        "run.json",
        "step-00000009",
        "step-00000012",
    ]


def test_a_finished_run_is_left_alone(lake: str) -> None:
    first = run_local(config(lake), lake, reporter=Recorder())
    before = {path: path.stat().st_mtime_ns for path in folder(lake, 12).iterdir()}
    recorder = Recorder()
    assert run_local(config(lake), lake, reporter=recorder) == first
    assert {path: path.stat().st_mtime_ns for path in folder(lake, 12).iterdir()} == before
    assert (recorder.reports, recorder.checkpoints) == ([], [])


def test_finished_means_this_config_and_all_its_steps(lake: str) -> None:
    assert finished(config(lake), lake) is None
    last = run_local(config(lake, steps=6), lake, reporter=Recorder())
    assert finished(config(lake, steps=6), lake) == last
    assert finished(config(lake), lake) is None
    with pytest.raises(AltDiffusionError, match="another seed"):
        finished(config(lake, seed=6), lake)


def test_more_steps_continue_a_finished_run(lake: str, undisturbed: dict[str, str]) -> None:
    run_local(config(lake, steps=6), lake, reporter=Recorder())
    run_local(config(lake), lake, reporter=Recorder())
    assert file_hashes(folder(lake, 12)) == undisturbed


@pytest.mark.parametrize("damage", ["flip unet", "flip state", "flip complete", "truncate ema", "lose optimizer"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    lake: str, undisturbed: dict[str, str], damage: str
) -> None:
    run_local(config(lake, steps=9), lake, reporter=Recorder())
    newest = folder(lake, 9)
    if damage == "flip unet":
        flip(newest / "unet.safetensors", -3)
    elif damage == "flip state":
        flip(newest / "state.json", -3)
    elif damage == "flip complete":
        flip(newest / "COMPLETE.json", 30)
    elif damage == "truncate ema":
        data = (newest / "ema.safetensors").read_bytes()
        (newest / "ema.safetensors").write_bytes(data[:-100])
    else:
        (newest / "optimizer.safetensors").unlink()
    recorder = Recorder()
    run_local(config(lake), lake, reporter=recorder)
    assert len(recorder.warnings) == 1
    assert str(newest) in recorder.warnings[0]
    assert "is not complete and is not used" in recorder.warnings[0]
    assert [found.step for found in recorder.checkpoints] == [9, 12]
    assert checkpoints.verify(str(newest)) == []
    assert file_hashes(folder(lake, 12)) == undisturbed


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(lake: str) -> None:
    run_local(config(lake, steps=6), lake, reporter=Recorder())
    for step in (3, 6):
        flip(folder(lake, step) / "unet.safetensors", -3)
    with pytest.raises(AltDiffusionError, match=r"run align: has no checkpoint that is whole \(2 damaged\)"):
        run_local(config(lake), lake, reporter=Recorder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "quality"}, "belongs to a run of stage alignment, this config is of stage quality"),
        ({"optimizer": {"lr": 2e-3, "warmup_steps": 4, "ema_decay": 0.9}}, r"optimizer\.lr \(0\.001, now 0\.002\)"),
        ({"seed": 6}, r"another seed \(5, now 6\)"),
    ],
)
def test_the_name_of_a_run_with_another_config_is_refused(lake: str, changes: dict[str, object], message: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    with pytest.raises(AltDiffusionError, match=message) as error:
        run_local(config(lake, **changes), lake, reporter=Recorder())
    assert any(way in error.value.remedy for way in ("another run name", "continue_as"))


def test_another_dataset_version_under_the_same_name_is_refused(lake: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    record = read_record(lake, "align")
    assert record is not None
    pinned = record["datasets"][0].removeprefix("dataset:")
    write_latents(lake, "latents", 100)
    with pytest.raises(AltDiffusionError, match=r"another datasets \(it was started with dataset:latents@"):
        run_local(config(lake), lake, reporter=Recorder())
    old = run_local(config(lake, datasets=[{"name": pinned}]), lake, reporter=Recorder())
    assert old.step == 12


def test_another_base_model_under_the_same_path_is_refused(lake: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    flip(Path(lake) / "models" / "base" / "text_encoder" / "model.safetensors", -3)
    with pytest.raises(AltDiffusionError, match="another start model"):
        run_local(config(lake), lake, reporter=Recorder())


def test_checkpoints_without_their_record_are_refused_to_another_config(lake: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    (folder(lake, 3).parent / "run.json").unlink()
    with pytest.raises(AltDiffusionError, match="has checkpoints of stage alignment"):
        run_local(config(lake, stage="quality"), lake, reporter=Recorder())


def test_a_stage_starts_from_the_checkpoint_of_another_and_keeps_to_it(lake: str) -> None:
    first = run_local(config(lake, steps=6), lake, reporter=Recorder())
    settings = config(lake, run="quality", stage="quality", steps=3)
    settings = replace(settings, start=StartConfig(checkpoint="align"))
    second = run_local(settings, lake, reporter=Recorder())
    assert second.parents[-1] == str(first.ref)
    run_local(config(lake, steps=9), lake, reporter=Recorder())  # the first run goes on
    third = run_local(replace(settings, steps=6), lake, reporter=Recorder())
    assert third.parents[-1] == str(first.ref)


def test_a_damaged_newest_checkpoint_is_not_passed_over_by_another_run(lake: str) -> None:
    run_local(config(lake, steps=6, checkpoint_every=3), lake, reporter=Recorder())
    flip(folder(lake, 6) / "unet.safetensors")
    settings = replace(config(lake, run="quality", stage="quality", steps=3), start=StartConfig(checkpoint="align"))
    for question in (
        lambda: run_local(settings, lake, reporter=Recorder()),
        lambda: seen(lake, "align"),
        lambda: continuation(config(lake, steps=12, continue_as="more"), lake),
    ):
        with pytest.raises(
            AltDiffusionError, match=r"step-00000006: is the newest of run align and is damaged"
        ) as error:
            question()
        assert error.value.remedy == "restore it, or remove the folder to use the one before"
    shutil.rmtree(folder(lake, 6))
    assert run_local(settings, lake, reporter=Recorder()).parents[-1].startswith("checkpoint:align/step-00000003@")


def test_a_start_that_is_not_there_is_named(lake: str) -> None:
    settings = config(lake, run="quality", stage="quality", start={"checkpoint": "nothing"})
    with pytest.raises(AltDiffusionError, match=r"run nothing, named by start.checkpoint of run quality"):
        run_local(settings, lake, reporter=Recorder())
    with pytest.raises(AltDiffusionError, match=r"model folder .* is missing or empty"):
        run_local(config(lake, start={"base": f"{lake}/models/none"}), lake, reporter=Recorder())


def test_a_checkpoint_of_another_architecture_is_refused(lake: str, tmp_path: Path) -> None:
    from altdiffusion.diffusion import models
    from altdiffusion.training.weights import load_weights

    found = run_local(config(lake, steps=3), lake, reporter=Recorder())
    with pytest.raises(AltDiffusionError, match="does not fit this model"):
        load_weights(lake, models.build_unet(models.unet_config_demo()), found, "ema")


def test_no_space_for_a_checkpoint_ends_nothing_but_the_last(lake: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    before = file_hashes(folder(lake, 3))
    recorder = Recorder()
    unwritten = pytest.raises(AltDiffusionError, match=r"checkpoint of step 12 .* could not be written")
    with no_file_beyond(20_000), unwritten as error:
        run_local(config(lake), lake, reporter=recorder)
    assert "free space" in error.value.remedy
    assert len(recorder.warnings) == 2  # of steps 6 and 9
    assert "the previous one is kept, training continues" in recorder.warnings[0]
    assert file_hashes(folder(lake, 3)) == before
    assert sorted(path.name for path in folder(lake, 3).parent.iterdir()) == ["journal", "run.json", "step-00000003"]


def test_a_step_is_never_overwritten(lake: str) -> None:
    found = run_local(config(lake, steps=3), lake, reporter=Recorder())
    same = {
        "run": "align",
        "step": 3,
        "stage": "alignment",
        "config_fingerprint": found.config_fingerprint,
        "parents": found.parents,
        "tensors": {name: found.tensors(name) for name in (checkpoints.UNET, checkpoints.EMA, checkpoints.OPTIMIZER)},
        "state": found.state(),
    }
    before = {path: path.stat().st_mtime_ns for path in folder(lake, 3).iterdir()}
    assert write(lake, **same).digest == found.digest
    with pytest.raises(AltDiffusionError, match="exists already, complete and with other content"):
        write(lake, **{**same, "state": {"step": 3}})
    assert {path: path.stat().st_mtime_ns for path in folder(lake, 3).iterdir()} == before


def test_checkpoints_on_an_object_store() -> None:
    lake = "memory://checkpoints-test"
    for step in (1, 2, 3):
        write(
            lake,
            run="r",
            step=step,
            stage="quality",
            config_fingerprint="f",
            parents=["dataset:d@" + "0" * 64],
            tensors={"unet.safetensors": {"w": torch.full((3,), float(step))}},
            state={"step": step},
        )
    checkpoints.prune(lake, "r", 2)
    assert checkpoints.steps(lake, "r") == [2, 3]
    found = checkpoints.latest_verified(lake, "r")
    assert found is not None
    assert found.step == 3
    assert torch.equal(found.tensors("unet.safetensors")["w"], torch.full((3,), 3.0))
    import fsspec

    fs = fsspec.filesystem("memory")
    path = "/checkpoints-test/checkpoints/r/step-00000003/"
    fs.rm(path + "COMPLETE.json")  # as after a kill in the middle of an upload
    warnings: list[str] = []
    before = checkpoints.latest_verified(lake, "r", warnings.append)
    assert before is not None
    assert before.step == 2
    assert "COMPLETE.json is missing" in warnings[0]


def test_failures_end_a_run_at_the_third_at_one_step(tmp_path: Path) -> None:
    lake = str(tmp_path)

    def fail(attempt: str, rank: int, step: int, error: Exception) -> None:
        failures.record(lake, "r", attempt=attempt, rank=rank, step=step, error=error)

    fail("a", 0, 7, RuntimeError("[gloo] Connection closed by peer"))
    fail("a", 1, 7, ZeroDivisionError("the cause"))
    fail("b", 1, 7, ZeroDivisionError("the cause"))
    fail("c", 1, 8, ZeroDivisionError("elsewhere"))
    assert failures.final(failures.read(lake, "r")) is None
    fail("d", 0, 7, RuntimeError("[gloo] Connection closed by peer"))
    fail("d", 1, 7, ZeroDivisionError("the cause"))
    ended = failures.final(failures.read(lake, "r"))
    assert ended is not None
    assert "at step 7, on rank 1" in str(ended.error())
    assert "ZeroDivisionError: the cause" in str(ended.error())
    failures.clear(lake, "r")
    assert failures.read(lake, "r") == []
    fail("e", 0, 1, AltDiffusionError("shard x", "is damaged", "curate again"))
    mendable = failures.final(failures.read(lake, "r"))
    assert mendable is not None
    assert str(mendable.error()) == "shard x: is damaged. Remedy: curate again"
