"""The format of checkpoints: any number of writers, while training goes on or not, whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints import write as checkpoint_write
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.checkpoints.tensor_file import DTYPES, write_tensors
from altdiffusion.training.checkpoints.write import share_out, write
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop import saver
from altdiffusion.training.reporting.progress import Progress
from tests.ranks import train_by_two
from tests.training_lake import Recorder, config, file_hashes

ROOT = Path(__file__).parents[2]
TENSORS = {
    "unet.safetensors": {f"w{i}": torch.arange(i * 7 + 1, dtype=torch.float32) for i in range(9)},
    "ema.safetensors": {"w1": torch.ones(3, 2)},
}


class Ranks:
    """An exchange among threads."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=300)
        self._values: list[Any] = [None] * world

    def of(self, rank: int) -> checkpoint_write.Exchange:
        def exchange(value: Any) -> list[Any]:
            self._values[rank] = value
            self._barrier.wait()
            values = list(self._values)
            self._barrier.wait()
            return values

        return exchange


def write_by(world: int, lake: str, step: int = 4, state: dict[str, Any] | None = None) -> list[Any]:
    """Write TENSORS by this many ranks, each in a thread; return what each of them got."""
    sizes = {(file, name): tensor.nbytes for file, named in TENSORS.items() for name, tensor in named.items()}
    owner = share_out(sizes, world)
    ranks, results = Ranks(world), [None] * world

    def one(rank: int) -> None:
        mine = {
            file: {name: tensor for name, tensor in named.items() if owner[file, name] == rank}
            for file, named in TENSORS.items()
        }
        try:
            results[rank] = write(  # type: ignore[call-overload]
                lake, run="r", step=step, stage="quality", config_fingerprint="f", parents=["dataset:d@" + "0" * 64],
                tensors=mine, state=state or {"step": step}, attempt="a", rank=rank, world=world,
                exchange=ranks.of(rank),
            )  # fmt: skip
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_tensor_file_is_what_the_library_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES
    } | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "ü": torch.ones(1)}  # fmt: skip
    path = tmp_path / "t.safetensors"
    with open(path, "wb") as file:
        whole, table = write_tensors(file, tensors)
    found = safetensors.torch.load_file(path)
    assert found.keys() == tensors.keys() == table.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert checkpoints.describe(str(path)) == whole


def test_the_share_of_each_rank_is_even_and_whole() -> None:
    sizes = {("f", f"t{i}"): 1 + i * i for i in range(200)}
    owner = share_out(sizes, 7)
    load = [sum(sizes[key] for key in sizes if owner[key] == rank) for rank in range(7)]
    assert owner.keys() == sizes.keys()
    assert max(load) - min(load) < 0.01 * max(load)
    assert owner == share_out(dict(reversed(sizes.items())), 7)


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_any_number_of_writers_writes_the_same_checkpoint(tmp_path: Path, place: str) -> None:
    digests = set()
    for world in (1, 2, 3, 12):
        lake = str(tmp_path / str(world)) if place == "folder" else f"memory://{tmp_path.name}-{world}"
        results = write_by(world, lake)
        assert all(isinstance(result, Checkpoint) and result == results[0] for result in results), results
        found = checkpoints.latest_verified(lake, "r")
        assert found is not None
        digests.add(found.digest)
        shards = [name for name in found.files if checkpoints.whole_name(name) == "unet.safetensors"]
        assert len(shards) == min(world, 9)
        for file, named in TENSORS.items():
            tensors = found.tensors(file)
            assert tensors.keys() == named.keys()
            assert all(torch.equal(tensors[name], named[name]) for name in named)
    assert len(digests) == 1


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_rank_that_fails_leaves_nothing_that_counts(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = str(tmp_path) if place == "folder" else f"memory://{tmp_path.name}"
    write_by(3, lake)
    original = checkpoint_write._write_share

    def fail(folder: str, tensors: Any, rank: int, world: int) -> Any:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return original(folder, tensors, rank, world)

    monkeypatch.setattr(checkpoint_write, "_write_share", fail)
    assert [str(error) for error in write_by(3, lake, step=8)] == ["[Errno 28] No space left on device"] * 3
    monkeypatch.undo()
    found = checkpoints.latest_verified(lake, "r")
    assert found is not None and found.step == 4
    if place == "folder":
        assert os.listdir(tmp_path / "checkpoints" / "r") == ["step-00000004"]
    checkpoints.sweep(lake, "r", 4)
    assert checkpoints.steps(lake, "r") == [4]
    assert isinstance(write_by(2, lake, step=8)[0], Checkpoint)


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_remainders_are_no_checkpoints_and_go_with_the_next_one(tmp_path: Path, place: str) -> None:
    """A writer that failed on an object store, or a removal that was killed, leaves files without COMPLETE.json."""
    lake = str(tmp_path) if place == "folder" else f"memory://{tmp_path.name}"
    for step in (2, 4, 6, 9):
        write_by(1, lake, step=step)
    for step in (2, 4, 9):
        files.remove_tree(files.join(checkpoints.folder_of(lake, "r", step), checkpoints.COMPLETE))
    assert checkpoints.steps(lake, "r") == [2, 4, 6, 9] and checkpoints.complete_steps(lake, "r") == [6]
    checkpoints.prune(lake, "r", keep_last=2)
    assert checkpoints.steps(lake, "r") == [6, 9]  # the one after the newest may be being written


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("world", [1, 3])
def test_a_whole_checkpoint_is_never_overwritten(tmp_path: Path, place: str, world: int) -> None:
    lake = str(tmp_path) if place == "folder" else f"memory://{tmp_path.name}-{world}-never"
    (first, *_) = write_by(2, lake)
    for error in write_by(world, lake, state={"step": 4, "other": 1}):
        assert isinstance(error, checkpoint_write.CheckpointConflict)
    assert checkpoints.latest_verified(lake, "r") == first


def test_a_shard_that_another_machine_kept_for_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = checkpoint_write._write_share

    def elsewhere(folder: str, tensors: Any, rank: int, world: int) -> Any:
        if rank == 1:
            folder = str(tmp_path / "another machine" / os.path.basename(folder))
        return original(folder, tensors, rank, world)

    monkeypatch.setattr(checkpoint_write, "_write_share", elsewhere)
    (error, *_) = write_by(2, str(tmp_path / "lake"))
    assert "unet-00002-of-00002.safetensors: was written by another worker and is not there" in str(error) or (
        "ema-00002-of-00002.safetensors" in str(error)
    )
    assert "a lake that all machines reach" in str(error)


@pytest.mark.parametrize(
    "damage", ["lose shard", "flip shard", "flip tensors", "flip listing", "lose COMPLETE", "cut COMPLETE"]
)
def test_damage_to_any_file_of_a_sharded_checkpoint_is_found(tmp_path: Path, damage: str) -> None:
    lake = str(tmp_path)
    write_by(3, lake)
    write_by(3, lake, step=8)
    folder = tmp_path / "checkpoints" / "r" / "step-00000008"
    what, _, name = damage.partition(" ")
    path = folder / {
        "shard": "unet-00002-of-00003.safetensors", "tensors": "tensors.json", "listing": "COMPLETE.json"
    }.get(name, "COMPLETE.json")  # fmt: skip
    data = bytearray(path.read_bytes())
    if what == "lose":
        path.unlink()
    elif what == "cut":
        path.write_bytes(data[:-40])
    else:
        at = data.index(b"unet-00002") + 3 if name == "listing" else len(data) - 5
        data[at] ^= 1
        path.write_bytes(bytes(data))
    warnings: list[str] = []
    found = checkpoints.latest_verified(lake, "r", warnings.append)
    assert found is not None and found.step == 4
    assert len(warnings) == 1 and path.name in warnings[0] and "is not used" in warnings[0]


def test_the_format_before_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write_by(1, str(tmp_path))
    path = tmp_path / "checkpoints" / "r" / "step-00000004" / "COMPLETE.json"
    document = json.loads(path.read_text()) | {"format": "altdiffusion-checkpoint-1"}
    path.write_text(json.dumps(document))
    with pytest.raises(AltDiffusionError, match="is of the format altdiffusion-checkpoint-1") as error:
        checkpoints.latest_verified(str(tmp_path), "r")
    assert "start.base" in error.value.remedy


def test_the_last_and_every_so_many_are_kept(lake: str) -> None:
    run_local(config(lake, checkpoint_every=1, keep_every=5), lake, reporter=Recorder())
    assert checkpoints.steps(lake, "align") == [5, 10, 11, 12]
    for step in (5, 10):
        assert checkpoints.open_step(lake, "align", step).step == step


def test_a_checkpoint_written_while_training_goes_on_or_not_is_the_same(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits until two more updates have been made: what it writes is still the state of its step."""
    passed = threading.Condition()
    at = [0]
    original = write

    class Watcher(Recorder):
        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            with passed:
                at[0] = progress.step
                passed.notify_all()

    def late(*args: Any, step: int, **kwargs: Any) -> Checkpoint:
        with passed:
            assert passed.wait_for(lambda: at[0] >= min(step + 2, 11), timeout=300), "training waits for the writer"
        return original(*args, step=step, **kwargs)

    monkeypatch.setattr(saver, "write", late)
    recorder = Watcher()
    run_local(config(lake, log_every=1, keep_last=9), lake, reporter=recorder)
    monkeypatch.undo()
    assert [found.step for found in recorder.checkpoints] == [3, 6, 9, 12]
    folder = Path(lake) / "checkpoints" / "align"
    concurrent = file_hashes(folder)
    os.rename(folder, Path(lake) / "concurrent")
    run_local(config(lake, log_every=1, keep_last=9, checkpoint_async=False), lake, reporter=Recorder())
    ours = {name: digest for name, digest in file_hashes(folder).items() if name.startswith("step-")}
    assert ours == {name: digest for name, digest in concurrent.items() if name.startswith("step-")}
    assert len(ours) == 4 * 6


def test_two_workers_write_one_checkpoint_that_one_worker_reads(lake: str, tmp_path: Path) -> None:
    settings = config(lake, steps=6, micro_batch=2, workers={"count": 2})
    train_by_two(lake, tmp_path / "store", settings)
    found = checkpoints.open_step(lake, "align", 6)
    assert "unet-00001-of-00002.safetensors" in found.files and "unet-00002-of-00002.safetensors" in found.files
    names = (checkpoints.UNET, checkpoints.EMA, checkpoints.OPTIMIZER)
    again = write(
        str(tmp_path / "copy"),
        run="align",
        step=6,
        stage=found.stage,
        config_fingerprint=found.config_fingerprint,
        parents=found.parents,
        tensors={name: found.tensors(name) for name in names},
        state=found.state(),
    )
    assert again.digest == found.digest
    sizes = [path.stat().st_size for path in Path(found.folder).glob("*-of-00002.safetensors")]
    assert max(sizes) < 0.75 * sum(sizes)
    last = run_local(replace(settings, steps=8), lake, reporter=Recorder())
    assert last.step == 8


def test_a_disk_that_is_full_ends_nothing(lake: str) -> None:
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("this user may not mount a small disk")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, str(ROOT / "tests/numerics/checkpoint_disk.py"), lake],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for step, line in zip((6, 9), lines, strict=False):
        assert line.startswith(f"warning: checkpoint of step {step} in ")
        assert "No space left on device" in line and "the previous one is kept, training continues" in line
    assert lines[2] == "first kept: True"
    alone = run_local(config(lake, run="align"), lake, reporter=Recorder())  # the mount is gone: from the start
    assert lines[3] == f"last: 12 {alone.digest}"
    assert lines[4] == "['journal', 'run.json', 'step-00000003', 'step-00000012']"
