"""Runs of a program that are killed with SIGKILL at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def killed(
    start: Callable[[], subprocess.Popen[bytes]], lake: Path, kills: int, seed: int, most_files: int = 12
) -> int:
    """Kill `kills` runs, each as soon as it has made a random number of new files; return how many were running.

    Args:
        start: starts a run in a session of its own.
        lake: the folder whose files are counted.
        most_files: new files of a run, at most, when it is killed.
    """
    draw = random.Random(seed)
    hits = 0
    for _ in range(kills):
        process = start()
        wanted = len(list(lake.rglob("*"))) + draw.randint(1, most_files)
        while process.poll() is None and len(list(lake.rglob("*"))) < wanted:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            hits += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return hits
