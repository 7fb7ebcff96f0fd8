"""Ray's authentication: its mode, the token file, and whether a head on this machine refuses who has none."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator

from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.execution.cluster import check_token_file

TOKEN_FILE = "~/.ray/auth_token"
DASHBOARD = ("127.0.0.1", 8265)
_MAKE = "(umask 077; ray get-auth-token --generate), and export RAY_AUTH_MODE=token before every `ray start`"


def check_token(dashboard: tuple[str, int] = DASHBOARD) -> Iterator[Line]:
    """Check who may run code on a cluster of this machine's.

    Args:
        dashboard: host and port at which a head's job API is looked for.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser(TOKEN_FILE)
    if mode not in (None, "token"):
        yield Line(FAIL, "ray token", f"RAY_AUTH_MODE={mode}: everyone who reaches the head runs code", _MAKE)
    elif os.environ.get("RAY_AUTH_TOKEN"):
        yield Line(OK, "ray token", "in RAY_AUTH_TOKEN")
    elif not os.path.exists(path):
        if mode == "token":
            yield Line(FAIL, "ray token", f"RAY_AUTH_MODE=token, but {path} is missing", _MAKE)
        else:
            yield Line(OK, "ray token", "none here; an embedded Ray makes one of its own")
    else:
        os.environ["RAY_AUTH_MODE"] = "token"  # what a file without a mode means to `altdiffusion submit` too
        try:
            check_token_file()
        finally:
            if mode is None:
                del os.environ["RAY_AUTH_MODE"]
        if mode is None:
            yield Line(WARN, "ray token", f"{path}, but RAY_AUTH_MODE is not set", "export RAY_AUTH_MODE=token")
        else:
            yield Line(OK, "ray token", f"{path}, readable by its owner only")
    yield from _of_head(dashboard)


def _of_head(dashboard: tuple[str, int]) -> Iterator[Line]:
    """Yield how a head's job API answers to who has no token; nothing where none listens."""
    connection = http.client.HTTPConnection(*dashboard, timeout=5)
    try:
        connection.request("GET", "/api/jobs/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
    where = f"the job API at {dashboard[0]}:{dashboard[1]}"
    if status in (401, 403):
        yield Line(OK, "job API", f"{where} answers {status} without a token")
    else:
        yield Line(FAIL, "job API", f"{where} answers {status} without a token", f"stop Ray; {_MAKE}")
