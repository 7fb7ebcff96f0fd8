"""What `benchmarks.s3_server` does wrong on request: errors, delays, cut connections, listings that lag behind.

`POST /?faults` with a JSON list of rules; each new list replaces the one before. A rule:

    {"methods": ["PUT"], "match": "/shards/", "every": 3, "times": 5, "status": 503, "code": "SlowDown"}

`methods` are those counted by `GET /?counts` (GET, HEAD, LIST, PUT, POST, DELETE, and PART for a part of an upload in
parts), all where they are left out; `match` is a regular expression on the path; every `every`-th such request is hit,
at most `times` of them. What happens: `status` with `code` in place of an answer; `delay_s` before it; `cut` closes the
connection in the middle of the body, of a request that writes as of an answer; `unanswered` does what was asked and
closes the connection; `stale_s` leaves objects younger than so many seconds out of a listing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class Rule:
    """One fault; it counts the requests that it is for."""

    methods: Sequence[str] = ()
    match: str = ""
    every: int = 1
    times: int | None = None
    status: int | None = None
    code: str = "InternalError"
    delay_s: float = 0.0
    cut: bool = False
    unanswered: bool = False
    stale_s: float = 0.0
    seen: int = 0
    hits: int = 0

    def hit(self, method: str, path: str) -> bool:
        """Return whether a request is hit."""
        if (self.methods and method not in self.methods) or not re.search(self.match, path):
            return False
        self.seen += 1
        if self.seen % self.every or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class Faults:
    """The rules of a server."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def replace(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Take other rules."""
        self.rules = [Rule(**rule) for rule in rules]

    def of(self, method: str, path: str) -> Rule | None:
        """Return what happens to a request, the first rule that hits it."""
        return next((rule for rule in self.rules if rule.hit(method, path)), None)
