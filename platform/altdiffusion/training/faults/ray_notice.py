"""Notice to a worker on Ray: SIGTERM, the driver's word to stop, and Ray's that a machine is being taken back.

`ray.train.get_preemption_info` is alpha and changes; nothing else here knows it.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from typing import Any

from altdiffusion.training.faults.notice import SAVE, STOP, Notice

POLL_S = 2.0
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_KEPT: list[Any] = []  # what C will call must not be collected


def listen(notice: Notice, mailbox: Any = None) -> None:
    """Gives notice as soon as this worker hears of it. All ranks call it: they ask Ray in step with each other.

    Args:
        mailbox: handle of the `Mailbox` actor, on the one rank that listens to the driver.
    """
    _on_sigterm(notice)
    threading.Thread(target=_ask, args=(notice,), name="preemption", daemon=True).start()
    if mailbox is not None:
        threading.Thread(target=_hear, args=(notice, mailbox), name="driver", daemon=True).start()


def stopping(mailbox: Any) -> bool:
    """Whether the driver was told to stop; False too while the mailbox cannot be reached."""
    import ray

    try:
        return bool(ray.get(mailbox.stopping.remote(), timeout=30))
    except Exception:  # it is being started again; who listens asks again
        return False


def _hear(notice: Notice, mailbox: Any) -> None:
    while notice.level != STOP:
        time.sleep(POLL_S)
        if stopping(mailbox):
            notice.give(STOP, "the job was sent SIGTERM")


def _on_sigterm(notice: Notice) -> None:
    """Takes SIGTERM over from Ray, whose own handler ends the process at once.

    Only a process's main thread may install a handler, and Ray Train runs us in another: so the interpreter is asked
    to do it in the main thread, as its C interface offers.
    """

    def install(_: Any) -> int:
        signal.signal(signal.SIGTERM, lambda *_: notice.give(STOP, "SIGTERM"))
        return 0

    callback = _CALLBACK(install)
    _KEPT.append(callback)
    ctypes.pythonapi.Py_AddPendingCall(callback, None)


def _ask(notice: Notice) -> None:
    from ray import train

    known: tuple[str, ...] = ()
    while True:
        time.sleep(POLL_S)
        try:
            info = train.get_preemption_info()  # all ranks meet here, beside the training
        except Exception:  # the group is being taken down, or this Ray knows no such call
            return
        nodes = tuple(info.preempted_node_ids) if info is not None else ()
        if nodes != known:
            known = nodes
            if nodes:
                notice.give(SAVE, f"nodes {', '.join(nodes)} are being taken back")
