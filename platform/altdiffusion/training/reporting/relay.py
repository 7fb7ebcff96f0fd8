"""Between rank 0 and the driver, through one small actor: what happens in a run, and the word that it is to stop.

The driver prints what happens and appends it to the outbox, so that progress and metrics are where the person and the
shipping thread are, whatever machine rank 0 runs on. Sending returns at once; a mailbox that died takes nothing with
it but lines.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the actor's process needs none of torch, and so does not load it
    from altdiffusion.training.checkpoints.format import Checkpoint
    from altdiffusion.training.reporting.report import Progress, Reporter

POLL_S = 0.5
FLUSH_S = 10.0


class Mailbox:
    """The actor: a list that one writes and one empties, and a flag. Letters are closed: it never opens one."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []
        self._stopping = False

    def put(self, letter: bytes) -> None:
        self._letters.append(letter)

    def take(self) -> list[bytes]:
        taken, self._letters = self._letters, []
        return taken

    def stop(self) -> None:
        """The run is to write a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


class MailReporter:
    """Rank 0's reporter: posts to the mailbox (a handle of the actor)."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._last: Any = None

    def progress(self, progress: Progress) -> None:
        self._post("progress", progress)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._post("checkpoint", checkpoint)

    def warning(self, text: str) -> None:
        self._post("warning", text)

    def flush(self) -> None:
        import ray

        if self._last is not None:
            with contextlib.suppress(Exception):  # the actor is gone: nothing will arrive
                ray.wait([self._last], timeout=FLUSH_S)

    def _post(self, kind: str, content: Any) -> None:
        with contextlib.suppress(Exception):  # a report that is lost must not end the training
            self._last = self._mailbox.put.remote(pickle.dumps((kind, content)))


class Postman:
    """The driver's side: a thread that hands what is in the mailbox to a reporter. Use it as a context manager.

    Args:
        take: empties the mailbox.
        reporter: gets every letter, in order.
        forward: called as often as the mailbox is emptied: what the driver has to say.
    """

    def __init__(
        self, take: Callable[[], list[bytes]], reporter: Reporter, forward: Callable[[], None] = lambda: None
    ) -> None:
        self._take, self._reporter, self._forward = take, reporter, forward
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postman", daemon=True)

    def __enter__(self) -> Postman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._deliver()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._deliver()
            with contextlib.suppress(Exception):  # the next turn says it again
                self._forward()

    def _deliver(self) -> None:
        try:
            letters = self._take()
        except Exception:  # the next turn asks again
            return
        for letter in letters:
            kind, content = pickle.loads(letter)  # from our own worker, through our own cluster
            getattr(self._reporter, kind)(content)
