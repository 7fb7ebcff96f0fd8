"""The metrics of a pipeline step's units, recorded by its driver as their results arrive.

The driver records them, and not the workers, because a worker that ends takes with it what was not exported yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from altdiffusion.monitoring import catalogue
from altdiffusion.monitoring.record import add, observe, set_to
from altdiffusion.storage.ledger import UnitRecord


@dataclass(frozen=True, slots=True)
class OutputCounts:
    """What a unit left in one dataset, in numbers."""

    dataset: str
    rows_in: int
    rows_out: int
    rejects: Mapping[str, int]
    """Number of rejected rows by reason."""
    bytes: int
    """Bytes of the shards of accepted rows."""

    @classmethod
    def of(cls, dataset: str, record: UnitRecord) -> OutputCounts:
        """Return the numbers of a record."""
        written = sum(shard.bytes for shard in record.shards)
        return cls(dataset, record.rows_in, record.rows_out, dict(record.rejects_by_reason), written)


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that every ledger has a record of."""

    unit_id: str
    rows_in: int
    rows_out: int | None
    """Number of accepted rows; None where there are several outputs, each with a number of its own."""
    seconds: float
    """How long it was worked on."""
    made: tuple[OutputCounts, ...]
    """The outputs that were made now, and not by an earlier start."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Finished:
        """Return what a worker's answer describes."""
        return cls(**{**given, "made": tuple(OutputCounts(**counts) for counts in given["made"])})


class UnitMetrics:
    """Records what happens to the units of one pipeline step.

    Args:
        step: name of the pipeline step.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._done = 0

    def begin(self, units: int, done: int) -> None:
        """Record how many units there are, and how many of them were recorded before."""
        self._done = done
        set_to(catalogue.UNITS, units, step=self._step)
        set_to(catalogue.UNITS_DONE, done, step=self._step)

    def finished(self, unit: Finished) -> None:
        """Record a finished unit."""
        step = self._step
        self._done += 1
        set_to(catalogue.UNITS_DONE, self._done, step=step)
        add(catalogue.UNITS_FINISHED, 1, step=step)
        if unit.made:
            observe(catalogue.UNIT_SECONDS, unit.seconds, step=step)
        for made in unit.made:
            where = {"step": step, "dataset": made.dataset}
            add(catalogue.ROWS_READ, made.rows_in, **where)
            add(catalogue.ROWS_ACCEPTED, made.rows_out, **where)
            add(catalogue.BYTES_WRITTEN, made.bytes, **where)
            for reason, rows in made.rejects.items():
                add(catalogue.ROWS_REJECTED, rows, reason=reason, **where)

    def failed(self, reason: Literal["error", "unsettled", "worker_lost"]) -> None:
        """Record a failure of a unit."""
        add(catalogue.UNITS_FAILED, 1, step=self._step, reason=reason)
