"""Which share of a run's time was useful: kept next to its checkpoints, so that it outlives restarts.

    <lake>/checkpoints/<run>/journal/00000.json   one per start of the workers (and per return to a checkpoint)

Each file states when and at which step the start began, how far it came, how long it computed and how long it stopped
for checkpoints. It is rewritten with every report and at least every `BEAT_S`, so no more than that is unknown of a
start that was killed. No digest covers it.

goodput = time of the steps that count / time since the run began. A step that is repeated after a restart counts
once; loading, waiting for machines and for checkpoints do not count. The time between the end of a finished run and
its continuation for more steps is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document, read_document
from altdiffusion.training.checkpoints.format import run_folder

FOLDER = "journal"
BEAT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of the workers."""

    world: int
    began: float
    """Seconds since 1970."""
    until: float
    first: int
    """Step that it continued from."""
    step: int
    """Step that it came to."""
    busy_s: float = 0.0
    """Seconds in steps."""
    stall_s: float = 0.0
    """Seconds for checkpoints."""
    finished: bool = False
    """It came to the last step."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Which share of a run's time was useful so far, and where the rest went."""

    share: float
    """Useful time over all time, 0 to 1."""
    wasted_steps: int
    """Steps that were repeated, or will be."""
    restarts: int
    stall_s: float
    total_s: float

    def line(self) -> str:
        """Return one line for people."""
        return (
            f"goodput {self.share:.1%} of {self.total_s / 3600:.2f} h, {self.wasted_steps} steps repeated after "
            f"{self.restarts} restarts, {self.stall_s:.1f} s stalled for checkpoints"
        )


NO_GOODPUT = Goodput(share=0.0, wasted_steps=0, restarts=0, stall_s=0.0, total_s=0.0)


def goodput(starts: Sequence[Start]) -> Goodput:
    """Return the sum over the starts of a run, given in their order."""
    useful = total = 0.0
    wasted = 0
    for number, start in enumerate(starts):
        redone = min((later.first for later in starts[number + 1 :]), default=start.step)
        done = start.step - start.first
        kept = max(0, min(start.step, redone) - start.first)
        wasted += done - kept
        useful += start.busy_s * kept / done if done else 0.0
        last = number + 1 == len(starts)
        end = start.until if last or start.finished else starts[number + 1].began
        total += max(end - start.began, 0.0)
    return Goodput(
        share=useful / total if total else 0.0,
        wasted_steps=wasted,
        restarts=sum(not start.finished for start in starts[:-1]),
        stall_s=sum(start.stall_s for start in starts),
        total_s=total,
    )


def read(lake: str, run: str) -> list[Start]:
    """Return the starts of a run; one whose record is torn is left out."""
    folder = files.within(run_folder(lake, run), FOLDER)
    found = []
    for name in files.list_names(folder):
        try:
            found.append(_start(read_document(files.within(folder, name))))
        except (AltDiffusionError, FileNotFoundError):
            continue
    return found


def _start(record: Document) -> Start:
    return Start(
        world=record.count("world"),
        began=record.number("began"),
        until=record.number("until"),
        first=record.count("first"),
        step=record.count("step"),
        busy_s=record.number("busy_s"),
        stall_s=record.number("stall_s"),
        finished=record.flag("finished"),
    )


class Journal:
    """The record of one start of the workers; only rank 0 keeps one.

    Args:
        step: the step that it continues from.
        so_far_s: seconds since the start began.
    """

    def __init__(self, lake: str, run: str, *, step: int, world: int, so_far_s: float) -> None:
        folder = files.within(run_folder(lake, run), FOLDER)
        self._earlier = read(lake, run)
        self._uri = files.join(folder, f"{len(files.list_names(folder)):05d}.json")
        self._so_far_s, began = so_far_s, time.time() - so_far_s
        self._start = Start(world=world, began=began, until=began + so_far_s, first=step, step=step)
        self._loop = self._written = time.perf_counter()
        self._write()

    def note(self, step: int, *, stall_s: float, finished: bool = False) -> Goodput:
        """Write the state after some steps, and return what the run's time was worth. A failure to write is ignored."""
        busy = time.perf_counter() - self._loop - stall_s
        self._start = replace(
            self._start,
            until=self._start.began + self._so_far_s + time.perf_counter() - self._loop,  # a clock that does not jump
            step=step,
            busy_s=busy,
            stall_s=stall_s,
            finished=finished,
        )
        self._write()
        return goodput([*self._earlier, self._start])

    def beat(self, step: int, *, stall_s: float) -> None:
        """Note a step that has ended, if nothing was noted for BEAT_S."""
        if time.perf_counter() - self._written >= BEAT_S:
            self.note(step, stall_s=stall_s)

    def _write(self) -> None:
        self._written = time.perf_counter()
        try:
            files.write_atomic(self._uri, files.canonical_json(asdict(self._start)))
        except (AltDiffusionError, OSError):
            return  # a full disk: the next one may have room
