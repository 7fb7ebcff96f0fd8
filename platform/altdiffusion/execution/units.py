"""What runs (a `UnitWork`), on what (a `Unit`) and where (a `Pool` of workers with `Resources` each)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from altdiffusion.storage.ledger import UNIT_ID, UnitRecord

Backend = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece of work. Only descriptors travel, never rows."""

    id: str
    """Stable: made from the input's digest and the row range."""
    index: int
    """Its place in the input order."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON: what a worker has to read."""

    def __post_init__(self) -> None:
        if not UNIT_ID.fullmatch(self.id):
            raise ValueError(f"unit id {self.id!r} is not usable as a file name")


class Unsettled(Exception):
    """Raised by `UnitWork.run`: the place where the unit ran may have caused its result, so nothing of it is recorded.

    Args:
        unit_id: of the unit.
        rows: that were tried.
        accepted: of these.
        reasons: of the others, counted.
    """

    def __init__(self, unit_id: str, rows: int, accepted: int, reasons: Mapping[str, int]) -> None:
        super().__init__(unit_id, rows, accepted, dict(reasons))  # all in args: it pickles across Ray workers
        self.unit_id = unit_id
        self.rows = rows
        self.accepted = accepted
        self.reasons = dict(reasons)


class UnitWork(Protocol):
    """One pipeline step's work on one unit.

    It is made on the driver and pickled to every worker, so its constructor only keeps descriptions (URIs, configs).
    Everything is a function of the unit and of what the constructor got: a unit may run twice (a worker died, two
    drivers race) and must then write the same bytes.
    """

    def setup(self) -> None:
        """Load models and open connections: called once per worker, before its first unit."""

    def run(self, unit: Unit) -> UnitRecord:
        """Read the unit's input, write its shards and rejects, and return the record of what it made.

        The runner writes the ledger, after the shards.

        Raises:
            Unsettled: nothing is recorded, and the unit is tried again once others have been recorded.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The number of workers, which grows from `min_size` towards `max_size` while units wait."""

    min_size: int = 1
    max_size: int = 1

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ValueError("min_size: is below 1; a pool has at least one worker")
        if self.max_size < self.min_size:
            raise ValueError("max_size: is below min_size; give at least as many")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The share of the cluster that one worker takes: logical CPUs and GPUs, bytes of memory (0 = not accounted)."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is negative; give 0 or more")
        if not self.num_cpus and not self.num_gpus:
            raise ValueError("num_cpus: is 0 with no GPU either; a worker takes at least a part of one")
