"""What went wrong in a run's workers, kept next to its checkpoints so that it outlives them.

A restart does not know why it was needed. So each worker that fails leaves a note. A step at which three starts of
the workers failed, or an error that no restart can fix, ends the run instead of being tried again.
"""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass

from altdiffusion.credentials import redact
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import NAME, read_document
from altdiffusion.training.checkpoints.format import run_folder

LIMIT = 3


class TrainingFailed(RuntimeError):
    """A run failed for a reason that the user cannot fix; the message holds the worker's own traceback."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one worker failed."""

    attempt: str
    """Names one start of all the workers."""
    rank: int
    step: int
    traceback: str
    collateral: bool
    """The worker only lost its connection to one that failed."""
    mendable: tuple[str, str, str] | None
    """What, problem, remedy of an AltDiffusionError."""

    def error(self) -> Exception:
        """Return the exception to raise on the driver."""
        if self.mendable is not None:
            return AltDiffusionError(*self.mendable)
        return TrainingFailed(f"training failed at step {self.step}, on rank {self.rank}:\n{self.traceback}")


def record(lake: str, run: str, *, attempt: str, rank: int, step: int, error: BaseException) -> None:
    """Write down a worker's failure."""
    text = str(error).lower()
    mendable = (error.what, error.problem, error.remedy) if isinstance(error, AltDiffusionError) else None
    failure = Failure(
        attempt=attempt,
        rank=rank,
        step=step,
        traceback=redact("".join(traceback.format_exception(error))),
        collateral=mendable is None and any(word in text for word in ("gloo", "nccl", "connection closed")),
        mendable=mendable,
    )
    uri = files.join(_folder(lake, run), f"{attempt}-{rank:05d}.json")
    files.write_atomic(uri, files.canonical_json(asdict(failure)))


def read(lake: str, run: str) -> list[Failure]:
    """Return all failures since `clear`."""
    folder = _folder(lake, run)
    found = []
    for name in files.list_names(folder):
        if not name.endswith(".json") or not NAME.fullmatch(name):
            continue  # not a note of a failure
        note = read_document(
            files.within(folder, name), remedy="remove this file; it is only a note of an earlier failure"
        )
        mendable = note.texts("mendable") if note.value.get("mendable") else None
        if mendable is not None and len(mendable) != 3:
            raise note.wrong("mendable", "what, problem and remedy")
        found.append(
            Failure(
                attempt=note.text("attempt"),
                rank=note.count("rank"),
                step=note.count("step"),
                traceback=note.text("traceback"),
                collateral=note.flag("collateral"),
                mendable=None if mendable is None else (mendable[0], mendable[1], mendable[2]),
            )
        )
    return found


def final(failures: list[Failure]) -> Failure | None:
    """Return the failure that ends the run, or None while a restart is worth trying."""
    for failure in failures:
        if failure.mendable is not None:
            return failure
    by_step: dict[int, list[Failure]] = {}
    for failure in failures:
        by_step.setdefault(failure.step, []).append(failure)
    for same in by_step.values():
        if len({failure.attempt for failure in same}) >= LIMIT:
            return cause(same)
    return None


def cause(failures: list[Failure]) -> Failure:
    """Return the most informative of some failures: an original one rather than a lost connection."""
    return min(failures, key=lambda failure: (failure.collateral, failure.rank))


def clear(lake: str, run: str) -> None:
    """Remove the failures of earlier starts of the job."""
    files.remove_tree(_folder(lake, run), below=run_folder(lake, run))


def _folder(lake: str, run: str) -> str:
    return files.within(run_folder(lake, run), "failures")
