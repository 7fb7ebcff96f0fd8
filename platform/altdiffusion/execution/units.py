"""What runs (a `Work`), on what (a `Unit`) and where (a `Pool` of workers with `Resources` each)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from altdiffusion.storage.ledger import UNIT_ID, UnitRecord

Backend = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece of work. It describes rows and never holds them."""

    id: str
    """Stable identity: made from the input's digest and the row range."""
    index: int
    """Place in the input order."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """Description of what a worker has to read, as plain JSON."""

    def __post_init__(self) -> None:
        if not UNIT_ID.fullmatch(self.id):
            raise ValueError(f"unit id {self.id!r} is not usable as a file name")


class Unsettled(Exception):
    """Raised by a work whose result may be due to the machine or network it ran on, so that nothing is recorded.

    Args:
        unit_id: id of the unit.
        rows: number of rows that were tried.
        accepted: number of these rows that were accepted.
        reasons: number of the other rows by reject reason.
    """

    def __init__(self, unit_id: str, rows: int, accepted: int, reasons: Mapping[str, int]) -> None:
        super().__init__(unit_id, rows, accepted, dict(reasons))  # all of it in args, which pickling needs
        self.unit_id = unit_id
        self.rows = rows
        self.accepted = accepted
        self.reasons = dict(reasons)


class UnitWork(Protocol):
    """The work of a pipeline step with one output.

    It is created on the driver and pickled to every worker, so its constructor only keeps descriptions (URIs, configs).
    Everything is a function of the unit and of the constructor's arguments. A unit may run twice, because a worker died
    or because two drivers race, and must then write the same bytes.
    """

    def setup(self) -> None:
        """Load models and open connections; called once per worker, before its first unit."""

    def run(self, unit: Unit) -> UnitRecord:
        """Read the unit's input, write its shards and rejects, and return its record.

        The runner writes the ledger, after the shards.

        Raises:
            Unsettled: nothing is recorded, and the unit is tried again once others have been recorded.
        """


@runtime_checkable
class MultiOutputWork(Protocol):
    """The work of a pipeline step with several outputs; all else is as for `UnitWork`."""

    def setup(self) -> None:
        """Load models and open connections; called once per worker, before its first unit."""

    def run_outputs(self, unit: Unit, outputs: Sequence[str]) -> Sequence[UnitRecord]:
        """Read the unit's input once, write its shards and rejects for some outputs, and return one record per output.

        Args:
            outputs: names of the datasets that have no record of the unit yet. What a unit leaves in one of them must
                not depend on which others are made with it.

        Raises:
            Unsettled: nothing is recorded, and the unit is tried again once others have been recorded.
        """


Work = UnitWork | MultiOutputWork


@runtime_checkable
class SpillingWork(Protocol):
    """A work that keeps what it has made of a unit before the unit is finished, so that a stop does not lose it."""

    def recorded(self, unit: Unit) -> None:
        """Remove what was kept of a unit: every ledger has its record now. May be called again."""


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
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources: amounts by name."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is negative; give 0 or more")
        if not self.num_cpus and not self.num_gpus:
            raise ValueError("num_cpus: is 0 with no GPU either; a worker takes at least a part of one")
