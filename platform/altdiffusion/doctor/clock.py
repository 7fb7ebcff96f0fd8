"""The clock: its distance from a server's, and from those of other nodes."""

from __future__ import annotations

import email.utils
import http.client
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from altdiffusion.doctor.line import FAIL, OK, WARN, Line

TIMEOUT_S = 5.0
WARN_S, FAIL_S = 5.0, 300.0
"""Object stores refuse requests whose time is 15 minutes off; log lines are compared by the second."""
_REMEDY = "timedatectl set-ntp true, or start chrony"


def check_clock(uri: str) -> Iterator[Line]:
    """Compare the clock with the Date that a server states, which is in whole seconds.

    Args:
        uri: `http(s)://host[:port]` of an object store or of any server.
    """
    address = urlsplit(uri)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        began = time.time()
        connection.request("HEAD", "/")
        stated = email.utils.parsedate_to_datetime(connection.getresponse().headers.get("Date", ""))
        ended = time.time()
    except (OSError, ValueError, http.client.HTTPException):
        yield Line(WARN, "clock", f"{uri} states no time", "compare it by hand: date -u")
        return
    finally:
        connection.close()
    yield line(stated.timestamp() + 0.5 - (began + ended) / 2, f"of {address.netloc}")


def line(offset_s: float, whose: str, node: str = "") -> Line:
    """Return the line for a distance between two clocks, in seconds."""
    found = f"{abs(offset_s):.1f} s from that {whose}"
    level = FAIL if abs(offset_s) > FAIL_S else WARN if abs(offset_s) > WARN_S else OK
    return Line(level, "clock", found, "" if level == OK else _REMEDY, node)
