"""What people state about a dataset that they publish, because no manifest can: licence, address, creator, date."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError

_ADDRESS = re.compile(r"https?://[^\s\"'<>\\]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statements:
    """The statements of a document; None where nothing was stated, which is never filled in by a guess.

    Raises:
        AltDiffusionError: an address or a date has another form.
    """

    licence: str | None = None
    """Address of the licence, or its SPDX identifier (`CC-BY-4.0`), which the hub has in lower case."""
    url: str | None = None
    """Address of the page where the dataset is published."""
    creator: str | None = None
    """Name of the organisation that made the dataset."""
    date: str | None = None
    """Date of publication, YYYY-MM-DD."""
    contact: str | None = None
    """Where to ask for a takedown."""

    def __post_init__(self) -> None:
        if self.url is not None and not _ADDRESS.fullmatch(self.url):
            raise AltDiffusionError(f"--url {self.url}", "is not an http or https address", "give a full address")
        if self.date is not None:
            check_date(self.date)

    def missing(self, *options: str) -> Iterator[str]:
        """Yield the options among these that were not given."""
        for option in options:
            if getattr(self, option) is None:
                yield f"--{option}"


def check_date(text: str) -> None:
    """Refuse a text that is not a date.

    Raises:
        AltDiffusionError: it is not of the form YYYY-MM-DD.
    """
    try:
        valid = datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        valid = False
    if not valid:
        raise AltDiffusionError(f"--date {text}", "is not a date", "write it as YYYY-MM-DD")
