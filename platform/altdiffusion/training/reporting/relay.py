"""The message relay between rank 0 and the driver: it passes on what happens in a run, and the request to stop.

The driver prints what happens and appends it to the outbox, so that progress and metrics are on the machine of the
user and of the shipping thread, whatever machine rank 0 runs on. Sending returns at once; an actor that dies loses
nothing but lines.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from altdiffusion.errors import first_line

if TYPE_CHECKING:  # the actor's process needs none of torch, and so does not load it
    from altdiffusion.training.checkpoints.format import Checkpoint
    from altdiffusion.training.reporting.progress import Progress
    from altdiffusion.training.reporting.reporter import Measured, Reporter

log = logging.getLogger(__name__)

POLL_S = 0.5
FLUSH_S = 10.0


class MessageRelay:
    """The actor: a list of messages, which one side fills and the other empties, and a flag. It opens no message."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._stopping = False

    def put(self, message: bytes) -> None:
        self._messages.append(message)

    def take(self) -> list[bytes]:
        taken, self._messages = self._messages, []
        return taken

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


class RelayReporter:
    """Rank 0's reporter: sends to the relay (a handle of the actor)."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._last: Any = None

    def progress(self, progress: Progress) -> None:
        self._send("progress", progress)

    def measured(self, measured: Measured) -> None:
        self._send("measured", measured)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._send("checkpoint", checkpoint)

    def warning(self, text: str) -> None:
        self._send("warning", text)

    def flush(self) -> None:
        import ray

        if self._last is not None:
            with contextlib.suppress(Exception):  # the actor is gone: nothing will arrive
                ray.wait([self._last], timeout=FLUSH_S)

    def _send(self, kind: str, content: Any) -> None:
        with contextlib.suppress(Exception):  # a report that is lost must not end the training
            self._last = self._relay.put.remote(pickle.dumps((kind, content)))


class RelayReader:
    """The driver's side: a thread that gives the relay's messages to a reporter. Use it as a context manager.

    Args:
        take: empties the relay.
        reporter: gets every message, in order.
        forward: called as often as the relay is emptied: sends what the driver asks for.
    """

    def __init__(
        self, take: Callable[[], list[bytes]], reporter: Reporter, forward: Callable[[], None] = lambda: None
    ) -> None:
        self._take, self._reporter, self._forward = take, reporter, forward
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="message-relay", daemon=True)

    def __enter__(self) -> RelayReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._deliver()
        self._reporter.flush()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._deliver()
            try:
                self._forward()
            except Exception as error:  # the next turn repeats it
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Log the first failure of an outage."""
        if not self._failed:
            log.warning("the workers cannot be reached; trying again (%s)", first_line(error))
        self._failed = True

    def _deliver(self) -> None:
        try:
            messages = self._take()
        except Exception as error:  # the next turn asks again
            self._warn(error)
            return
        self._failed = False
        for message in messages:
            kind, content = pickle.loads(message)  # from our own worker, through our own cluster
            getattr(self._reporter, kind)(content)
