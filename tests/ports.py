"""Ports of loopback."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that no server listens on now: to start one there, or to be refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
