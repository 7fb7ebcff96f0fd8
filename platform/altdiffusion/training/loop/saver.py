"""Saves the checkpoints of a run while it continues.

Training stops only while this rank's share of the tensors is copied to host memory; hashing, writing, fsync
and the rename happen in a thread. One checkpoint is made at a time: the next one waits for it, and that wait counts
as stall. What is written is what the tensors were at the step, so a checkpoint is the same bit for bit
with and without the thread.

A checkpoint that cannot be written is reported and ends nothing; the one before is kept. Only the last checkpoint of a
run must be written, or the run has failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.errors import AltDiffusionError
from altdiffusion.monitoring.catalogue import TRAIN_CHECKPOINT_SECONDS
from altdiffusion.monitoring.record import observe
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.checkpoints.write import CheckpointConflict, alone, share_out, write
from altdiffusion.training.reporting.reporter import Reporter
from altdiffusion.training.run.record import needed_by_others
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.waiting import waiting, waiting_for

WRITE_TIMEOUT_S = 1800
CLOSE_S = 60.0

Tensors = Mapping[str, Mapping[str, Tensor]]


class Saver:
    """The checkpoints of a run, as one rank takes part in them. All ranks save at the same steps.

    Args:
        attempt: names this start of the workers; the same on all ranks.
        newest: the checkpoint that the run continues from.
    """

    def __init__(
        self,
        run: ResolvedRun,
        *,
        reporter: Reporter,
        attempt: str,
        rank: int = 0,
        world: int = 1,
        newest: Checkpoint | None = None,
    ) -> None:
        self._run, self._reporter, self._attempt = run, reporter, attempt
        self._rank, self._world = rank, world
        self.newest = newest
        self.stall_s = 0.0
        """Seconds for which training stopped for checkpoints."""
        # Collectives of the thread need a group of their own, and memory of the host.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=WRITE_TIMEOUT_S)) if world > 1 else None
        self._owner: dict[tuple[str, str], int] | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._thread: threading.Thread | None = None
        self._step = 0
        self._outcome: tuple[Checkpoint | None, Exception | None] = (None, None)

    def save(self, tensors: Tensors, state: Mapping[str, Any], *, last: bool = False) -> None:
        """Take a checkpoint of this moment; with `last`, return when it is durable.

        Raises:
            AltDiffusionError: it is the last one and could not be written, or an earlier one found a checkpoint
                of another run in its place.
        """
        began = time.perf_counter()
        self._settle()
        self._copy(tensors)
        self._step = int(state["step"])
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint", daemon=True)
        self._thread.start()
        if last or not self._run.config.checkpoint_async:
            self._settle(last)
        self.stall_s += time.perf_counter() - began

    def poll(self) -> None:
        """Report a checkpoint that was finished meanwhile; return at once."""
        if self._thread is None or self._thread.is_alive():
            return
        if not isinstance(self._outcome[1], CheckpointConflict):  # all ranks raise a conflict, at the next save
            self._settle()

    def close(self) -> None:
        """Let a checkpoint that is being written be finished, for CLOSE_S at most."""
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            self.poll()

    def _settle(self, last: bool = False) -> None:
        """Wait for the checkpoint that is being written and report the outcome, which is the same on all ranks."""
        if self._thread is None:
            return
        with waiting_for(self._thread):
            self._thread.join()
        self._thread = None
        (written, error), self._outcome = self._outcome, (None, None)
        if written is not None:
            self.newest = written
            if self._rank == 0:
                self._reporter.checkpoint(written)
            return
        if isinstance(error, CheckpointConflict):
            raise error
        what = f"checkpoint of step {self._step} in {checkpoints.run_folder(self._run.lake, self._run.config.run)}"
        if last:
            raise AltDiffusionError(
                what, f"could not be written ({error})", "free space there, then run the same command again"
            ) from error
        if self._rank == 0:
            self._reporter.warning(
                f"{what} could not be written ({error}); the previous one is kept, training continues"
            )

    def _copy(self, tensors: Tensors) -> None:
        """Copy this rank's share to host memory, which is kept from one checkpoint to the next."""
        if self._owner is None:
            sizes = {(file, name): value.nbytes for file, named in tensors.items() for name, value in named.items()}
            self._owner = share_out(sizes, self._world)
            self._copies = {file: {} for file in tensors}
        cuda = False
        for file, named in sorted(tensors.items()):
            for name, value in sorted(named.items()):
                value = value.detach()
                if hasattr(value, "full_tensor"):  # sharded over the ranks: all take part
                    with waiting():
                        value = value.full_tensor()
                if self._owner[file, name] != self._rank:
                    continue
                copies = self._copies[file]
                if name not in copies:
                    copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                copies[name].copy_(value, non_blocking=True)
                cuda = cuda or value.is_cuda
        if cuda:
            torch.cuda.current_stream().synchronize()

    def _write(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint; runs in the thread."""
        run, began = self._run, time.perf_counter()
        try:
            written = write(
                run.lake,
                run=run.config.run,
                step=self._step,
                stage=run.config.stage,
                config_fingerprint=run.fingerprint,
                parents=[str(ref) for ref in run.parents],
                tensors=self._copies,
                state=state,
                attempt=self._attempt,
                rank=self._rank,
                world=self._world,
                exchange=self._exchange if self._group is not None else alone,
            )
        except Exception as error:
            self._outcome = (None, error)
            return
        self._outcome = (written, None)
        if self._rank == 0:
            observe(TRAIN_CHECKPOINT_SECONDS, time.perf_counter() - began)
            try:
                needed = needed_by_others(run.lake, run.config.run)
                checkpoints.prune(run.lake, run.config.run, run.config.keep_last, run.config.keep_every, needed)
            except Exception as error:
                self._reporter.warning(f"old checkpoints of run {run.config.run} could not be removed ({error})")

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._world
        with waiting():
            dist.all_gather_object(values, value, group=self._group)
        return values
