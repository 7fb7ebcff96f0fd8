"""Events on their way to an OpenLineage server: one POST per event, with a bounded number of tries."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import Any

from altdiffusion.errors import AltDiffusionError, first_line

TRIES = 4
WAIT_S = 0.5
"""Before the second try; each further wait is twice as long."""
TIMEOUT_S = 10.0
KEY_VARIABLE = "OPENLINEAGE_API_KEY"
"""Variable that OpenLineage's own clients read the server's key from."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a POST would become a GET, and the key would go to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


def post_events(url: str, events: Iterable[Mapping[str, Any]], *, wait_s: float = WAIT_S) -> int:
    """Send events to a server in their order, and return how many it took.

    Args:
        url: where events are posted, such as http://127.0.0.1:5000/api/v1/lineage.
        wait_s: before the second try.

    Raises:
        AltDiffusionError: the address is not usable, the server refuses an event, or it fails `TRIES` times in a row.
    """
    if not url.startswith(("http://", "https://")):
        raise AltDiffusionError(f"--url {url}", "is not an http or https address", "give the server's full address")
    opener = urllib.request.build_opener(_NoRedirect)
    sent = 0
    for event in events:
        _post(opener, url, json.dumps(event, ensure_ascii=False).encode(), wait_s, sent)
        sent += 1
    return sent


def _post(opener: urllib.request.OpenerDirector, url: str, body: bytes, wait_s: float, sent: int) -> None:
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
    for attempt in range(1, TRIES + 1):
        try:
            with opener.open(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            problem, final = f"answers {error.code} {error.reason}", error.code < 500 and error.code != 429
            error.close()
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            problem, final = f"cannot be reached ({reason if isinstance(reason, str) else first_line(reason)})", False
        if final or attempt == TRIES:
            tries = "" if final else f" ({TRIES} tries)"
            raise AltDiffusionError(
                f"OpenLineage server {url}",
                f"{problem}{tries}; {sent:,} events were sent before",
                f"check the address and {KEY_VARIABLE}, and run the command again: events have fixed ids",
            )
        time.sleep(wait_s * 2 ** (attempt - 1))
