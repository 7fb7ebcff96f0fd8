"""Signals of processes that tests start."""

from __future__ import annotations

import signal


def take_sigint() -> None:
    """Let this process receive SIGINT, which a shell makes ignored for what it runs in the background (preexec_fn)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
