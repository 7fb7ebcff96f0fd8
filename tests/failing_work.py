"""Works without rows: one that fails at unit 3 in a configured way, and one with several outputs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.units import Unit, Unsettled
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import ShardInfo


class Failing:
    def __init__(self, mode: str) -> None:
        self._mode = mode

    def setup(self) -> None:
        if self._mode == "setup":
            raise AltDiffusionError("thing of setup", "is bad", "fix it")

    def run(self, unit: Unit) -> UnitRecord:
        if unit.index == 3:
            if self._mode == "user":
                raise AltDiffusionError("thing of user", "is bad", "fix it")
            if self._mode == "bug":
                raise KeyError("oops")
            if self._mode == "unsure":
                raise Unsettled(unit.id, 7, 0, {"connect": 7})
            if self._mode == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._mode == "hoard":  # for the memory monitor
                held = bytearray(b"1") * (3 << 30)
                time.sleep(60)
                del held
        return UnitRecord(unit_id=unit.id, index=unit.index, input_digest="0" * 64, rows_in=0)


class Counted:
    """A work of two outputs whose records count 3 accepted rows and 2 rejected ones."""

    def setup(self) -> None:
        """Nothing to load."""

    def run_outputs(self, unit: Unit, outputs: Sequence[str]) -> list[UnitRecord]:
        print("counting")
        kept, dropped = (ShardInfo(sha256="0" * 64, rows=rows, bytes=100, row_group_rows=8) for rows in (3, 2))
        record = UnitRecord(
            unit_id=unit.id, index=unit.index, input_digest="0" * 64, rows_in=5, shards=(kept,), rejects=(dropped,),
            rejects_by_reason={"timeout": 2},
        )  # fmt: skip
        return [record for _ in outputs]


class TwoOutputs:
    """A work whose records name their output; it notes what it was asked for."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, tuple[str, ...]]] = []

    def setup(self) -> None:
        """Nothing to load."""

    def run_outputs(self, unit: Unit, outputs: Sequence[str]) -> list[UnitRecord]:
        self.ran.append((unit.index, tuple(outputs)))
        asked = f"{','.join(outputs)}: {{}}"
        return [
            UnitRecord(unit_id=unit.id, index=unit.index, input_digest=asked.format(name), rows_in=0)
            for name in outputs
        ]
