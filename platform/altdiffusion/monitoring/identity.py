"""Which job, run, rank and unit this process works for: the labels of its metrics and the fields of its log lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a process works for. The driver of a job sets it, and its workers adopt it."""

    job: str = ""
    """curate, encode, train, …; empty where no job runs."""
    run: str = ""
    """Name of the job's run."""
    rank: int | None = None
    """Rank of a worker of a training."""
    unit: str | None = None
    """Id of the unit that is being made."""
    json: bool = False
    """Whether its log lines are JSON (`json_logs`)."""


_current = [Identity()]


def identity() -> Identity:
    """Return what this process works for."""
    return _current[0]


def adopt(new: Identity) -> None:
    """Set what this process works for."""
    _current[0] = new


@contextlib.contextmanager
def making(unit: str) -> Iterator[None]:
    """Name a unit in the log lines of this process within the block; a process makes one unit at a time."""
    adopt(replace(identity(), unit=unit))
    try:
        yield
    finally:
        adopt(replace(identity(), unit=None))
