"""Preemption notices on Ray: SIGTERM to the worker, the driver's request to stop, and Ray's own warning.

`ray.train.get_preemption_info` is alpha and changes; no other module uses it.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
import time
from typing import Any

from altdiffusion.errors import first_line
from altdiffusion.training.faults.notice import SAVE, STOP, PreemptionNotice

log = logging.getLogger(__name__)

POLL_S = 2.0
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_KEPT: list[Any] = []  # what C will call must not be collected


def listen(notice: PreemptionNotice, relay: Any = None) -> None:
    """Give notice as soon as this worker receives one. All ranks call it: they ask Ray in step with each other.

    Args:
        relay: handle of the `MessageRelay` actor, on the one rank that listens to the driver.
    """
    _on_sigterm(notice)
    threading.Thread(target=_ask, args=(notice,), name="preemption", daemon=True).start()
    if relay is not None:
        threading.Thread(target=_hear, args=(notice, relay), name="driver", daemon=True).start()


def stopping(relay: Any) -> bool:
    """Return whether the driver was asked to stop; False, too, while the relay cannot be reached."""
    import ray

    try:
        return bool(ray.get(relay.stopping.remote(), timeout=30))
    except Exception as error:  # it is being restarted; a listener asks again
        log.warning("the driver cannot be asked whether the job is to stop (%s)", first_line(error))
        return False


def _hear(notice: PreemptionNotice, relay: Any) -> None:
    while notice.level != STOP:
        time.sleep(POLL_S)
        if stopping(relay):
            notice.give(STOP, "the driver was asked to stop")


def _on_sigterm(notice: PreemptionNotice) -> None:
    """Take SIGTERM over from Ray, whose own handler ends the process at once.

    Only a process's main thread may install a handler, and Ray Train runs this code in another one. So the
    interpreter is asked to do it in the main thread, as its C interface offers.
    """

    def install(_: Any) -> int:
        signal.signal(signal.SIGTERM, lambda *_: notice.give(STOP, "SIGTERM"))
        return 0

    callback = _CALLBACK(install)
    _KEPT.append(callback)
    ctypes.pythonapi.Py_AddPendingCall(callback, None)


def _ask(notice: PreemptionNotice) -> None:
    from ray import train

    known: tuple[str, ...] = ()
    while True:
        time.sleep(POLL_S)
        try:
            info = train.get_preemption_info()  # all ranks meet here, next to the training
        except Exception:  # the group is being taken down, or this Ray has no such call
            return
        nodes = tuple(info.preempted_node_ids) if info is not None else ()
        if nodes != known:
            known = nodes
            if nodes:
                notice.give(SAVE, f"nodes {', '.join(nodes)} are being taken back")
