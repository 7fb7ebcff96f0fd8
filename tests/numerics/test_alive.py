"""A run under preemption notice, with fewer workers, with a loss that spikes, with a worker that hangs: it goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import SpikeConfig
from altdiffusion.training.data.loader import Loader, Samples
from altdiffusion.training.faults import goodput as goodputs
from altdiffusion.training.faults.goodput import Start, goodput
from altdiffusion.training.faults.notice import SAVE, STOP, PreemptionNotice
from altdiffusion.training.faults.spikes import LossSpiked, SpikeGuard
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data, train_loop
from altdiffusion.training.order.skips import batch_at, merged, step_of
from altdiffusion.training.reporting.progress import Progress
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.seen import seen
from altdiffusion.training.update.trainer import Trainer
from tests.training_lake import Recorder, config, file_hashes, write_latents

NAMES = (checkpoints.UNET, checkpoints.EMA, checkpoints.OPTIMIZER)


class At(Recorder):
    """Does something when a step is reported."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        super().__init__()
        self._step, self._action = step, action

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if progress.step == self._step:
            self._action()


def step_folder(lake: str, step: int) -> Path:
    return Path(lake) / "checkpoints" / "align" / checkpoints.step_name(step)


@pytest.fixture(scope="module")
def undisturbed(pristine_lake: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import shutil

    lake = str(shutil.copytree(pristine_lake, tmp_path_factory.mktemp("undisturbed") / "lake"))
    torch.set_num_threads(1)
    run_local(config(lake), lake, reporter=Recorder())
    return file_hashes(step_folder(lake, 12))


# --- preemption notice ----------------------------------------------------------------------------------------------


def test_sigterm_writes_a_checkpoint_of_that_very_step_and_the_run_goes_on_from_it(
    lake: str, undisturbed: dict[str, str]
) -> None:
    torch.set_num_threads(1)
    before = signal.getsignal(signal.SIGTERM)
    recorder = At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Resumable, match=r"did so at step 5, whose checkpoint is written.*run the same command again"):
        run_local(config(lake, log_every=1), lake, reporter=recorder)  # the signal comes after step 4 was decided
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoints.steps(lake, "align") == [3, 5]
    assert recorder.reports[-1].step == 5
    run_local(config(lake, log_every=1), lake, reporter=Recorder())
    assert file_hashes(step_folder(lake, 12)) == undisturbed


def test_a_warning_writes_a_checkpoint_and_the_run_goes_on(lake: str, undisturbed: dict[str, str]) -> None:
    torch.set_num_threads(1)
    notice = PreemptionNotice()
    recorder = At(4, lambda: notice.give(SAVE, "a node will go"))
    last = train_loop(resolve(config(lake, log_every=1, keep_last=9), lake), reporter=recorder, notice=notice)
    assert [found.step for found in recorder.checkpoints] == [3, 5, 6, 9, 12]
    assert last.step == 12 and file_hashes(step_folder(lake, 12)) == undisturbed


def noticed(rank: int, lake: str, settings: Any, store: str, level: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    notice = PreemptionNotice()
    recorder = At(4, lambda: None)
    if rank == 1:  # the other one gets no notice
        original = torch.Tensor.backward
        calls = [0]

        def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            original(tensor, *args, **kwargs)
            calls[0] += 1
            if calls[0] == 8:  # two micro-batches per step: in step 4
                notice.give(level, "test")

        torch.Tensor.backward = backward  # type: ignore[method-assign]
    try:
        train_loop(resolve(settings, lake), reporter=recorder, rank=rank, world=2, notice=notice)
        ended = "done"
    except Resumable as stopped:
        ended = str(stopped)
    Path(f"{store}-{rank}").write_text(json.dumps([ended, [found.step for found in recorder.checkpoints]]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("level", [SAVE, STOP])
def test_a_preemption_notice_to_one_of_two_workers_reaches_both(lake: str, tmp_path: Path, level: int) -> None:
    settings = config(lake, micro_batch=2, workers={"count": 2}, checkpoint_every=100, keep_last=9, steps=8)
    store = str(tmp_path / "store")
    multiprocessing.spawn(noticed, args=(lake, settings, store, level), nprocs=2)
    (first, written), (second, _) = (json.loads(Path(f"{store}-{rank}").read_text()) for rank in (0, 1))
    if level == STOP:
        assert first == second and "did so at step 5" in first  # noticed in step 4, agreed upon in the next
        assert written == [5]
    else:
        assert (first, second, written) == ("done", "done", [5, 8])


# --- another number of workers --------------------------------------------------------------------------------------


def recorded(rank: int, world: int, lake: str, settings: Any, store: str, log: str) -> None:
    """Train a part of a run, and record the positions of every batch that this rank took."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    original = Loader._read

    def read(loader: Loader, step: int) -> Any:
        samples = original(loader, step)
        with open(f"{log}-{world}-{rank}", "a") as file:
            file.write(json.dumps([step, samples.positions.tolist()]) + "\n")
        return samples

    Loader._read = read  # type: ignore[method-assign]
    train_loop(resolve(settings, lake), reporter=Recorder(), rank=rank, world=world)
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_then_one_then_two_workers_see_the_same_samples(lake: str, tmp_path: Path) -> None:
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4}
    workers = {"count": 2, "min_count": 1}
    settings = config(lake, steps=9, micro_batch=2, optimizer=optimizer, workers=workers)
    order, _ = open_data(resolve(settings, lake))
    for stage, (world, steps) in enumerate([(2, 3), (1, 6), (2, 9)]):
        part = config(lake, steps=steps, micro_batch=2, optimizer=optimizer, workers=workers)
        log, store = str(tmp_path / f"seen-{stage}"), str(tmp_path / f"store-{stage}")
        multiprocessing.spawn(recorded, args=(world, lake, part, store, log), nprocs=world)
        found: dict[int, list[int]] = {}
        for rank in range(world):
            for line in Path(f"{log}-{world}-{rank}").read_text().splitlines():
                step, positions = json.loads(line)
                found.setdefault(step, []).extend(positions)
        assert sorted(found) == list(range(steps - 3, steps))
        for step, positions in found.items():
            assert sorted(positions) == sorted(order.batch(step).position.tolist())
    together = checkpoints.open_step(lake, "align", 9)
    alone = run_local(config(lake, run="alone", steps=9, optimizer=optimizer), lake, reporter=Recorder())
    for name in (checkpoints.UNET, checkpoints.EMA):
        one, other = alone.tensors(name), together.tensors(name)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=2e-6)


def test_a_batch_must_divide_for_every_number_of_workers_that_may_be_there(lake: str) -> None:
    assert config(lake, global_batch=24, workers={"count": 3, "min_count": 1}).workers.min_count == 1
    with pytest.raises(AltDiffusionError, match=r"lets the run continue with 3 workers.*a min_count of 4") as error:
        config(lake, global_batch=64, workers={"count": 4, "min_count": 2})
    assert "key workers.min_count" in str(error.value)
    with pytest.raises(AltDiffusionError, match=r"key workers.min_count: value 3 must be in 1 to count"):
        config(lake, workers={"count": 2, "min_count": 3})


# --- spikes ---------------------------------------------------------------------------------------------------------


def test_left_out_batches_by_hand() -> None:
    windows = merged([(7, 9), (2, 4), (4, 5), (8, 9)])
    assert windows == ((2, 5), (7, 9))
    assert [batch_at(windows, step) for step in range(7)] == [0, 1, 5, 6, 9, 10, 11]
    assert all(step_of(windows, batch_at(windows, step)) == step for step in range(50))
    assert batch_at((), 12) == 12


def test_the_rule_of_a_spike_by_hand() -> None:
    guard = SpikeGuard(SpikeConfig(factor=3.0, window=9, steps=2))
    losses = [1.0, 1.1, 0.9, 1.2, 0.8, 1.3, 0.7, 1.0]
    for batch, loss in enumerate(losses):
        guard.judge(loss, batch)
    guard.judge(99.0, 8)  # too early to judge: it enters the window
    limit = 1.0 + 3.0 * 1.4826 * float(np.median(np.abs(np.array([*losses, 99.0]) - 1.0)))
    assert guard.limit() == pytest.approx(limit)
    guard.judge(limit + 0.01, 9)  # one
    guard.judge(float("nan"), 10)  # not one of ours
    guard.judge(1.0, 11)  # over
    guard.judge(5.0, 12)
    again = SpikeGuard(SpikeConfig(factor=3.0, window=9, steps=2))
    again.load(json.loads(json.dumps(guard.state())))
    with pytest.raises(LossSpiked) as spike:
        again.judge(6.0, 13)
    assert (spike.value.first, spike.value.after) == (12, 14)


SPIKE = {"factor": 20.0, "window": 8, "steps": 2}


def poison(lake: str) -> tuple[Any, list[int]]:
    """Make a dataset with one bad row group; return a config that reads it in successive batches, and those batches."""
    for chunk in range(11):
        rows = set(range(16 * chunk, 16 * chunk + 16))
        write_latents(lake, "latents", 180, loud=sorted(rows))
        for seed in range(4):
            tree = {
                "objective": {"prediction": "v_prediction", "relearn": True}, "steps": 18, "keep_last": 9, "seed": seed,
                "order": {"chunk_rows": 16, "window_chunks": 1},
            }  # fmt: skip
            order, _ = open_data(resolve(config(lake, **tree), lake))
            batches = [batch for batch in range(22) if rows & set(order.batch(batch).row.tolist())]
            if batches[0] in (10, 11, 12, 13) and len(batches) == 2:
                return tree, batches
    raise AssertionError("no row group falls into the middle of the epoch")


def test_a_run_goes_back_before_a_spike_and_equals_one_that_never_saw_it(lake: str) -> None:
    tree, bad = poison(lake)
    recorder = Recorder()
    found = run_local(config(lake, guards={"spike": SPIKE}, log_every=1, **tree), lake, reporter=recorder)
    before = max(step for step in range(0, 99, 3) if step <= bad[0])
    assert len(recorder.warnings) == 1
    assert f"in batches {bad[0]} to {bad[1]}, above" in recorder.warnings[0]
    back = f"going back to the checkpoint of step {before}, batches {bad[0]} to {bad[1]} are left out"
    assert back in recorder.warnings[0]
    assert found.state()["skipped_batches"] == [[bad[0], bad[1] + 1]]
    assert recorder.reports[-1].goodput.wasted_steps == bad[1] - before  # the second bad step was never reported
    skipping = config(lake, run="skipping", guards={"skip_batches": [[bad[0], bad[1] + 1]]}, **tree)
    clean = run_local(skipping, lake, reporter=Recorder())
    for name in NAMES:
        ours, theirs = found.tensors(name), clean.tensors(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    plain = run_local(config(lake, run="plain", **tree), lake, reporter=Recorder())
    assert not torch.equal(*(next(iter(f.tensors(checkpoints.UNET).values())) for f in (found, plain)))

    order, _ = open_data(resolve(skipping, lake))
    taken = [batch for batch in range(20) if batch not in bad]
    for run in ("align", "skipping"):
        (counted,) = seen(lake, run)
        times = np.zeros(180, np.int64)
        for batch in taken:
            times += np.bincount(order.batch(batch).row, minlength=180)
        assert counted.times.tolist() == times.tolist()


def test_a_spike_is_judged_alike_after_a_restart_in_its_midst(lake: str) -> None:
    """The run stops after the first of two spikes, with a checkpoint made from bad data, which is given up."""
    tree, bad = poison(lake)
    settings = config(lake, guards={"spike": SPIKE}, log_every=1, **tree)
    notice = PreemptionNotice()
    with pytest.raises(Resumable):
        recorder = At(bad[0], lambda: notice.give(STOP, "test"))
        train_loop(resolve(settings, lake), reporter=recorder, notice=notice)
    assert checkpoints.steps(lake, "align")[-1] == bad[0] + 1
    again = Recorder()
    found = run_local(settings, lake, reporter=again)
    assert "going back to the checkpoint of step" in again.warnings[0]
    undisturbed = run_local(config(lake, run="skipping", guards={"skip_batches": [[bad[0], bad[1] + 1]]}, **tree), lake,
                            reporter=Recorder())  # fmt: skip
    for name in NAMES:
        ours, theirs = found.tensors(name), undisturbed.tensors(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_has_gone_back_too_often_stops(lake: str) -> None:
    tree, bad = poison(lake)
    guards = {"spike": SPIKE | {"steps": 1, "max_rollbacks": 1}}
    with pytest.raises(AltDiffusionError, match=r"loss .* in batches .* after it had gone back 1 times") as error:
        run_local(config(lake, guards=guards, **tree), lake, reporter=Recorder())
    assert "max_rollbacks" in error.value.remedy
    assert str(bad[1]) in error.value.problem


# --- a worker that hangs --------------------------------------------------------------------------------------------


def hanging(rank: int, lake: str, settings: Any, store: str, how: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    if rank == 1:
        original = Loader._read

        def read(loader: Loader, step: int) -> Any:
            if step == 5 and how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            while step == 5 and how == "waits for data":
                time.sleep(1)
            return original(loader, step)

        Loader._read = read  # type: ignore[method-assign]

    class WarningFile(Recorder):
        def warning(self, text: str) -> None:
            Path(f"{store}-warning").write_text(text)

    train_loop(resolve(settings, lake), reporter=WarningFile(), rank=rank, world=2)


@pytest.mark.parametrize("how", ["stopped", "waits for data"])
def test_a_worker_that_hangs_is_named(lake: str, tmp_path: Path, how: str) -> None:
    settings = config(lake, micro_batch=2, workers={"count": 2, "stall_timeout_s": 4.0})
    context, store = multiprocessing.get_context("spawn"), str(tmp_path / "store")
    processes = [context.Process(target=hanging, args=(rank, lake, settings, store, how)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        processes[0].join(timeout=150)
        assert processes[0].exitcode == 75
        text = Path(f"{store}-warning").read_text()
        assert f"rank 1 on host {os.uname().nodename} (process {processes[1].pid}) has been in step " in text
        assert "rank 0" not in text
        assert ("gives no sign of life" if how == "stopped" else "at loader.py:") in text
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


# --- what the time was worth ----------------------------------------------------------------------------------------


def test_goodput_by_hand() -> None:
    starts = [
        Start(world=2, began=100.0, until=160.0, first=0, step=30, busy_s=45.0, stall_s=5.0),  # 10 of 30 repeated
        Start(world=1, began=200.0, until=230.0, first=20, step=25, busy_s=10.0),  # 3 of 5 repeated
        Start(world=2, began=240.0, until=300.0, first=22, step=40, busy_s=36.0, finished=True),
        Start(world=2, began=10_000.0, until=10_050.0, first=40, step=50, busy_s=40.0),  # later: more steps
    ]
    found = goodput(starts)
    assert (found.wasted_steps, found.restarts, found.stall_s) == (13, 2, 5.0)
    assert found.total_s == (200 - 100) + (240 - 200) + (300 - 240) + 50
    assert found.share == pytest.approx((45 * 20 / 30 + 10 * 2 / 5 + 36 + 40) / 250)


def test_goodput_outlives_restarts(lake: str) -> None:
    def fail() -> None:
        raise RuntimeError("the power fails")

    with pytest.raises(RuntimeError, match="the power fails"):
        run_local(config(lake, log_every=1), lake, reporter=At(5, fail))
    recorder = Recorder()
    run_local(config(lake, log_every=1), lake, reporter=recorder)
    last = recorder.reports[-1]
    assert (last.goodput.wasted_steps, last.goodput.restarts) == (2, 1)  # steps 4 and 5 again, from checkpoint 3
    assert 0 < last.goodput.share < 1
    assert last.goodput.total_s > sum(start.busy_s for start in goodputs.read(lake, "align"))
    assert last.metrics()["train/wasted_steps"] == 2
    assert last.metrics()["train/goodput"] == last.goodput.share
    assert 0 <= last.metrics()["train/checkpoint_stall"] <= 1
    assert "2 repeated" in last.line("train align")
    assert "after 1 restarts" in last.goodput.line()
    assert goodputs.read(lake, "align")[-1].finished


def test_steps_between_two_reports_are_known_too(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that is killed in step 6 of a run that reports every 100 steps has wasted 4 and 5, not nothing."""
    torch.set_num_threads(1)
    monkeypatch.setattr(goodputs, "BEAT_S", 0.0)
    update = Trainer.update

    def fail(trainer: Trainer, samples: Samples) -> torch.Tensor:
        if trainer.counters.step == 5:
            raise RuntimeError("the power fails")
        return update(trainer, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", fail)
        with pytest.raises(RuntimeError, match="the power fails"):
            run_local(config(lake, log_every=100), lake, reporter=Recorder())
    recorder = Recorder()
    run_local(config(lake, log_every=100), lake, reporter=recorder)
    assert recorder.reports[-1].goodput.wasted_steps == 2
