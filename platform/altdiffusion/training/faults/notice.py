"""Preemption notices: a worker is about to be taken away, and all workers act on it together.

SIGTERM (a machine that is given back, a scheduler that makes room) or Ctrl-C asks for a checkpoint at once and for the
end of the run. A warning that some machine will go soon asks for a checkpoint only: training continues until the
machine goes. All ranks act on a notice to any of them, at the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from altdiffusion.errors import Resumable
from altdiffusion.training.waiting import waiting

NONE, SAVE, STOP = 0, 1, 2


class PreemptionNotice:
    """The notice that this worker was given; set from a signal handler or a thread."""

    def __init__(self) -> None:
        self._level = NONE
        self.reason = ""

    def give(self, level: int, reason: str) -> None:
        """Ask for a checkpoint now (SAVE), or for a checkpoint and then the end (STOP)."""
        if level > self._level:
            self._level, self.reason = level, reason

    @property
    def level(self) -> int:
        return self._level

    def answered(self) -> None:
        """Note that the checkpoint is being written; another notice may come."""
        if self._level == SAVE:
            self._level = NONE


class Agreement:
    """The highest level of any rank, the same on every rank at the same step, without waiting for any of them.

    A step starts the exchange and the next one reads it, so a notice is acted upon one step later. The exchange is in
    host memory: it makes no GPU wait.
    """

    def __init__(self, world: int) -> None:
        self._group = dist.new_group(backend="gloo") if world > 1 else None
        self._level = torch.zeros((), dtype=torch.int32)
        self._work: Any = None

    def level(self, mine: int) -> int:
        """Return the highest level of the levels given at the call before; call it once per step."""
        if self._group is None:
            return mine
        agreed = self.close()
        self._level.fill_(mine)
        self._work = dist.all_reduce(self._level, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> int:
        """End the exchange that is under way, which all ranks have started, and return its result."""
        if self._work is None:
            return NONE
        with waiting():
            self._work.wait()
        self._work = None
        return int(self._level)


@contextlib.contextmanager
def on_stop_signals(notice: PreemptionNotice) -> Iterator[None]:
    """Turn SIGTERM and SIGINT (Ctrl-C) into a notice to stop; a second one ends at once.

    Only the main thread receives signals. A Resumable that leaves the block has the exit status of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: object) -> None:
        restore()
        received.append(signal.Signals(number))
        os.write(2, b"stopping: a checkpoint is written first; the same signal again ends at once\n")
        notice.give(STOP, received[0].name)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    received: list[signal.Signals] = []
    taken = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in taken}  # what a shell made ignored stays so
    signal.pthread_sigmask(signal.SIG_UNBLOCK, taken)  # a program that starts this one may have blocked them
    try:
        yield
    except Resumable as stopped:
        if received:
            stopped.status = 128 + received[0]
        raise
    finally:
        restore()
