"""Faults of training in plain processes: its storage goes away, the clock jumps, a process that hangs holds a lock."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.locks import held
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.faults import goodput
from altdiffusion.training.launch_local import run_local
from tests.chaos.outcome import Case, Outcome, expect
from tests.s3_lake import BUCKET, bucket, wrong
from tests.training_lake import Recorder, config, make_lake

ROOT = Path(__file__).resolve().parents[2]
LAST = 12


def trained(lake: str) -> dict[str, str]:
    """Return the SHA-256 of the tensors of a run's last checkpoint."""
    found = checkpoints.open_step(lake, "align", LAST)
    uri = files.join(lake, "checkpoints", "align", checkpoints.step_name(found.step))
    return {
        name: files.sha256_hex(files.read_bytes(files.join(uri, name))) for name in (checkpoints.UNET, checkpoints.EMA)
    }


def undisturbed(folder: Path) -> tuple[str, dict[str, str]]:
    """Return a lake on this machine whose run nothing happened to, and its hashes."""
    torch.set_num_threads(1)
    lake = make_lake(folder)
    run_local(config(lake), lake, reporter=Recorder())
    return lake, trained(lake)


def checkpoints_are_refused(folder: Path, _: random.Random) -> Outcome:
    """Have the store refuse the first checkpoints of a run, and take the later ones."""
    lake, hashes = undisturbed(folder / "local")
    with bucket(folder / "s3") as address:
        there = f"{BUCKET}/lake"
        files.copy_tree(files.join(lake, "datasets"), files.join(there, "datasets"))
        reporter = Recorder()
        settings = config(there, start={"base": f"{lake}/models/base"})
        wrong(
            address, {"methods": ["PUT", "POST"], "match": "/step-0000000[36]/", "status": 403, "code": "AccessDenied"}
        )
        began = time.monotonic()
        run_local(settings, there, reporter=reporter)
        expect(trained(there) == hashes, "other weights than undisturbed")
        wrong(address)
        expect(any("step" in text for text in reporter.warnings), f"no warning: {reporter.warnings}")
        kept = checkpoints.steps(there, "align")
    return Outcome(
        lost=f"2 of 4 checkpoints; {', '.join(map(str, kept))} are there",
        wasted="nothing",
        note=f"{len(reporter.warnings)} warnings, done in {time.monotonic() - began:.0f} s",
    )


def clock_jumps(folder: Path, draw: random.Random) -> Outcome:
    """Set the process's clock a day forwards or backwards at random readings."""
    _, hashes = undisturbed(folder / "still")
    real, shift, jumps = time.time, 0.0, 0

    def jumping() -> float:
        nonlocal shift, jumps
        if draw.random() < 0.3:
            shift, jumps = draw.choice([-86_400.0, 86_400.0]), jumps + 1
        return real() + shift

    lake = make_lake(folder / "jumping")
    time.time = jumping
    try:
        run_local(config(lake), lake, reporter=Recorder())
    finally:
        time.time = real
    expect(trained(lake) == hashes, "other weights than undisturbed")
    share = goodput.goodput(goodput.read(lake, "align")).share
    expect(0.2 < share <= 1.0, f"a goodput of {share}")
    return Outcome(wasted="nothing", note=f"{jumps} jumps; goodput is stated as {share:.0%}")


def stopped_with_a_lock(folder: Path, _: random.Random) -> Outcome:
    """Stop a process that holds a lock: others end after a bound with its name, and go on when it is killed."""
    lock = folder / "x.lock"
    script = (
        "import sys, time; from altdiffusion.storage.locks import held\n"
        "with held(sys.argv[1], 'x', 5):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}"},
    )
    try:
        assert holder.stdout is not None
        expect(holder.stdout.readline() == b"held\n", "the lock was not taken")
        holder.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            with held(str(lock), "model x", 2.0):
                raise AssertionError("a lock was given twice")
        except AltDiffusionError as error:
            expect("model x" in error.what and str(lock) in error.remedy, str(error))
        waited = time.monotonic() - began
    finally:
        holder.kill()
        holder.communicate()
    again = time.monotonic()
    with held(str(lock), "model x", 5.0):
        recover_s = time.monotonic() - again
    return Outcome(wasted="nothing", recover_s=recover_s, note=f"ended after its bound, {waited:.1f} s of 2")


CASES = [
    Case(
        name="checkpoints-refused",
        fault="the storage of checkpoints is away",
        how="S3 refuses the checkpoints of steps 3 and 6 of 12",
        run=checkpoints_are_refused,
    ),
    Case(name="clock-jump", fault="clock jump", how="a day, either way, at random readings of time()", run=clock_jumps),
    Case(
        name="zombie-lock",
        fault="a zombie holds a lock",
        how="SIGSTOP of the process that holds it",
        run=stopped_with_a_lock,
    ),
]
