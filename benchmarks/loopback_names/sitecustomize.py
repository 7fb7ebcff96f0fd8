"""Names for benchmarks: every name below `web.test` leads to loopback, in whatever program has this folder on its path.

Python imports this module when it starts. Both programs that `benchmarks.web` compares resolve names by
`socket.getaddrinfo`, so both find the same hosts without a name server or an entry in /etc/hosts.
"""

from __future__ import annotations

import socket
from typing import Any

_getaddrinfo = socket.getaddrinfo


def _loopback(host: Any, *given: Any, **named: Any) -> Any:
    inside = isinstance(host, (str, bytes)) and (host if isinstance(host, str) else host.decode()).endswith(".web.test")
    return _getaddrinfo("127.0.0.1" if inside else host, *given, **named)


socket.getaddrinfo = _loopback
