"""The generate job with a log of what its workers draw; all else is `jobs.generate`.

    python -m benchmarks.logged_draws --config FILE [key=value ...]

The log is <lake>/draws.jsonl: one line per batch that was drawn, whether or not it was kept.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.execution.units import Unit
from altdiffusion.generation import steps
from altdiffusion.generation.generate_work import GenerateWork, Image
from altdiffusion.storage import files
from jobs.generate import JOB
from jobs.harness import leave, main

LOG = "draws.jsonl"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that a worker has drawn."""

    time: float
    """When it was drawn, in seconds since the epoch."""
    worker: int
    """Process id."""
    keys: list[str]
    """Row keys of its images."""


class LoggedWork(GenerateWork):
    """Appends each batch to the log once it is drawn, before it is encoded and kept."""

    def _keep(self, unit: Unit, encoded: dict[str, Future[Image]], *others: Any, spilled: bool) -> None:
        line = json.dumps({"time": time.time(), "worker": os.getpid(), "keys": list(encoded)}) + "\n"
        log = os.open(Path(files.local_path(self.lake)) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(log, line.encode())
        finally:
            os.close(log)
        super()._keep(unit, encoded, *others, spilled=spilled)


def read_log(lake: Path) -> list[Batch]:
    """Return the batches in the order in which they were drawn."""
    file = lake / LOG
    lines = file.read_text().splitlines() if file.exists() else []
    return sorted((Batch(**json.loads(line)) for line in lines), key=lambda batch: batch.time)


def drawn_again(batches: list[Batch]) -> int:
    """Return the number of images that were drawn although they had been drawn before."""
    counts = Counter(key for batch in batches for key in batch.keys)
    return sum(count - 1 for count in counts.values())


if __name__ == "__main__":
    from benchmarks import logged_draws  # workers find the class by this name, not in __main__

    steps.GenerateWork = logged_draws.LoggedWork  # type: ignore[misc]
    leave(main(JOB))
