"""What a site states about the use of its images for training, read from the headers of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from altdiffusion.curation.rejects import OPT_OUT_CONTENT_USAGE, OPT_OUT_TDM, OPT_OUT_X_ROBOTS_TAG
from altdiffusion.execution.reject_reasons import Reason

HEADERS = frozenset({"x-robots-tag", "tdm-reservation", "content-usage"})
"""Names, in lower case, of the headers that hold such signals."""
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_NO_AI = frozenset({"noai", "noimageai"})
_NO_INDEX = frozenset({"noindex", "noimageindex", "none"})


class Fields(Protocol):
    """Header fields, whatever the case of their names."""

    def get_all(self, name: str, /) -> Sequence[str] | None:
        """Return the values of the fields of that name."""


def opt_out(headers: Fields, agent: str, *, noindex: bool = False) -> Reason | None:
    """Return the signal that forbids use, as a reject reason; None where there is none. Malformed parts are skipped.

    X-Robots-Tag: `noai` or `noimageai`, for everyone or for our user agent's first word; with `noindex` also
    `noindex`, `noimageindex` and `none`.
    tdm-reservation: 1 (W3C TDM Reservation Protocol). Content-Usage: train-ai=n (IETF aipref draft).
    """
    forbidding = _NO_AI | _NO_INDEX if noindex else _NO_AI
    mine = agent.split("/")[0].split(" ")[0].lower()
    for value in headers.get_all("X-Robots-Tag") or ():
        speaks_to_us = True
        for part in str(value).lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _VALUED:
                speaks_to_us = name.strip() in ("*", mine)
                part = rest
            if speaks_to_us and part.strip() in forbidding:
                return OPT_OUT_X_ROBOTS_TAG
    if any(str(value).strip() == "1" for value in headers.get_all("tdm-reservation") or ()):
        return OPT_OUT_TDM
    for value in headers.get_all("Content-Usage") or ():
        if any(part.replace(" ", "").lower() == "train-ai=n" for part in str(value).split(",")):
            return OPT_OUT_CONTENT_USAGE
    return None
