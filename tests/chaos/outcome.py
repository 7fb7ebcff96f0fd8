"""What a chaos case found, and the registry of all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the work, compared with an undisturbed run. A case that survived has the same digests."""

    lost: str = "nothing"
    wasted: str
    """What was done again."""
    recover_s: float | None = None
    """From the end of the fault, or from the kill, to the end of the work by the same command."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault. It is either a function of its own, or tests that the suite has already."""

    name: str
    fault: str
    how: str
    """How the fault is made."""
    run: Callable[[Path, random.Random], Outcome] | None = None
    tests: tuple[str, ...] = ()
    """Ids of pytest, which compare digests and rows by themselves."""
    seed: int = 1


def expect(holds: bool, what: str) -> None:
    """Raise AssertionError where an outcome is not as it must be, also under `python -O`."""
    if not holds:
        raise AssertionError(what)
