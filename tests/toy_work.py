"""A pipeline step of small units without models or network, and a process that runs it in competition with others.

    python -m tests.toy_work FOLDER NUMBER PROCESSES ROUNDS OPTIONS

Each round runs one pipeline step in a lake of its own; all processes begin a round together.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from altdiffusion.execution.pipeline_step import Output, PipelineStep, run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.range_work import finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.records import REJECTS, SCORES
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord

UNITS = 6
ROWS = 5
NAME = "toys"


def image(unit: int, row: int) -> str:
    """Return the SHA-256 of the image in a row."""
    return files.sha256_hex(f"{unit}-{row}".encode())


class Toy:
    """Writes ROWS rows per unit and rejects one; with `own`, every process writes rows of its own."""

    ran: ClassVar[list[int]] = []
    """Units that this process has done."""

    def __init__(self, lake: str, settings: Mapping[str, Any], *, own: bool = False, pause_s: float = 0.0) -> None:
        self.lake, self.settings, self.own, self.pause_s = lake, dict(settings), own, pause_s

    def setup(self) -> None:
        """Load nothing."""

    def run(self, unit: Unit) -> UnitRecord:
        Toy.ran.append(unit.index)
        dataset = Lake(self.lake).dataset(NAME)
        word = f"{self.settings} {os.getpid() if self.own else ''}".encode()
        rows = [
            {
                "sample_id": unit.index * 100 + n,
                "image_sha256": image(unit.index, n),
                "language": "en",
                "embedding": word,
            }
            for n in range(ROWS)
        ]
        time.sleep(random.random() * self.pause_s)
        reject = {"unit_id": unit.id, "row": ROWS, "reason": "bad"}
        return finish_unit(
            dataset,
            unit,
            rows_in=ROWS + 1,
            accepted=[pa.Table.from_pylist(rows, schema=SCORES)],
            rejects=[pa.Table.from_pylist([reject], schema=REJECTS)],
        )


def pipeline_step(settings: Mapping[str, Any], *, own: bool = False, pause_s: float = 0.0) -> PipelineStep:
    """Return the one pipeline step: UNITS units into dataset `toys`."""
    return PipelineStep(
        name="toy",
        outputs=(Output(dataset=NAME, kind="scores", settings=settings),),
        noun="rows",
        parents=lambda _: [Ref("source", "toys", "5" * 64)],
        units=lambda _: [
            Unit(id=f"u{index}", index=index, payload={"input_digest": "0" * 64}) for index in range(UNITS)
        ],
        work=lambda lake: Toy(lake.uri, settings, own=own, pause_s=pause_s),
    )


def run(lake: str, settings: Mapping[str, Any], **given: Any) -> str:
    """Run the pipeline step here; return the digest of the version."""
    with open(os.devnull, "w") as quiet:
        progress = Progress("toy", stream=quiet)
        (version,) = run_pipeline_step(
            Lake(lake), pipeline_step(settings, **given), backend="inline", progress=progress
        )
    return version.ref.digest


def _together(folder: Path, number: int, processes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(number)).touch()
    late = time.monotonic() + 300
    while len(list(folder.iterdir())) < processes:
        if time.monotonic() > late:
            raise TimeoutError("another process did not come: it failed in the round before")
        time.sleep(0.001)


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[5])
    number, processes, rounds = (int(text) for text in sys.argv[2:5])
    for turn in range(rounds):
        _together(folder / f"start-{turn}", number, processes)
        digest = run(str(folder / f"lake-{turn}"), options["settings"], own=options["own"], pause_s=0.01)
        print(digest, flush=True)


if __name__ == "__main__":
    main()
