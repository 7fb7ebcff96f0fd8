"""robots.txt (RFC 9309): what a site lets our user agent fetch, asked once per site and remembered for a while.

A site is a scheme, host and port. Where it has no such file (4xx) everything is allowed; where it gives no answer (5xx,
too slow, broken) nothing is, for now. The file is fetched through the same guard as images, with a deadline of its
own, redirects included; what follows its first 500 KiB is not read.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import (
    BAD_URL,
    BLOCKED_ADDRESS,
    BLOCKED_PORT,
    CONNECT,
    DNS,
    ROBOTS_UNREACHABLE,
    TLS,
    Refused,
    http_status,
)
from altdiffusion.curation.web.connections import Deadline, Key
from altdiffusion.curation.web.event_loop import elsewhere
from altdiffusion.curation.web.fetch import Fetched, Fetcher, Moved, Want
from altdiffusion.execution.reject_reasons import Reason
from altdiffusion.urls import Target

MAX_BYTES = 500 << 10
_LONG_CHARS = 1 << 15
_LASTS_S = 24 * 3600.0  # RFC 9309, 2.4: not longer
_FAILURE_LASTS_S = 300.0
_REDIRECTS = 5
_CACHE_BYTES = 32 << 20
_ENTRY_BYTES = 1000  # of a file without rules, roughly
_OF_THE_HOST = frozenset({DNS, CONNECT, TLS, BLOCKED_ADDRESS, BLOCKED_PORT, BAD_URL})
_TOKEN = re.compile(r"[A-Za-z_-]+")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NOT_IN_PATH = re.compile(r"[^A-Za-z0-9\-._~%!$&'()*+,;=:@/]")
_NOT_IN_QUERY = re.compile(r"[^A-Za-z0-9\-._~%!$&()*+,;=]")
"""RFC 9309, 2.2.2: `?a=https://b.c` and `?a=https%3A%2F%2Fb.c` are one; and an apostrophe is requested as `%27`."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern as the texts between its `*`; `to_end` where it ends in `$`."""

    length: int
    allow: bool
    parts: tuple[str, ...]
    to_end: bool

    def matches(self, path: str) -> bool:
        first, *others = self.parts
        if not path.startswith(first):
            return False
        at = len(first)
        if not others:
            return not self.to_end or at == len(path)
        for part in others[:-1]:
            found = path.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        if self.to_end:
            return len(path) - len(others[-1]) >= at and path.endswith(others[-1])
        return path.find(others[-1], at) >= 0


@dataclass(frozen=True, kw_only=True)
class Robots:
    """What one site allows us."""

    rules: tuple[_Rule, ...] = ()
    """The longest first; of equally long ones those that allow."""
    crawl_delay_s: float | None = None
    problem: tuple[Reason, str] | None = None
    """Reason and detail where the site gives no answer, so that nothing may be fetched."""
    bytes: int = field(default=0, compare=False)

    def allows(self, path: str) -> bool:
        """Return whether a path with its query may be fetched: the longest pattern that matches decides."""
        if not self.rules or path == "/robots.txt":
            return True
        octets = _octets(path).replace("*", "%2A").replace("$", "%24")
        return next((rule.allow for rule in self.rules if rule.matches(octets)), True)


def parse(text: str, agent: str) -> Robots:
    """Return the rules for a user agent's product token (`OurBot` of `OurBot/1.0 (...)`), or those for `*`."""
    token = product_token(agent)
    groups: dict[str, tuple[list[_Rule], list[float]]] = {}
    group: list[str] = []
    in_rules = False
    for line in text.removeprefix("\ufeff").replace("\r", "\n").split("\n"):
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or name not in ("user-agent", "allow", "disallow", "crawl-delay"):
            continue
        if name == "user-agent":
            if in_rules:
                group, in_rules = [], False
            group.append("*" if value.startswith("*") else product_token(value))
            groups.setdefault(group[-1], ([], []))
            continue
        in_rules = in_rules or name != "crawl-delay"  # not of the RFC: it must not end a list of user agents
        for who in group:
            if who not in ("*", token):
                continue
            rules, delays = groups[who]
            if name == "crawl-delay":
                delays.extend(_seconds(value))
            elif value.startswith(("/", "*")):
                rules.append(_rule(value, allow=name == "allow"))
    rules, delays = groups.get(token or "*") or groups.get("*") or ([], [])
    ordered = sorted(rules, key=lambda rule: (-rule.length, not rule.allow))
    return Robots(
        rules=tuple(ordered),
        crawl_delay_s=max(delays, default=None),
        bytes=sum(200 + rule.length for rule in ordered),
    )


def product_token(agent: str) -> str:
    """Return the part of a user agent that robots.txt names, in lower case; empty if it has none."""
    match = _TOKEN.match(agent.strip())
    return match[0].lower() if match else ""


def _seconds(value: str) -> Sequence[float]:
    try:
        seconds = float(value)
    except ValueError:
        return ()
    return (seconds,) if 0 <= seconds < 1e6 else ()


def _rule(pattern: str, *, allow: bool) -> _Rule:
    to_end = pattern.endswith("$")
    octets = _octets(pattern.removesuffix("$") if to_end else pattern)
    parts = [part.replace("$", "%24") for part in octets.split("*")]
    return _Rule(len(octets) + to_end, allow, tuple(parts), to_end)


def _octets(path: str) -> str:
    """Return the one spelling of texts that mean the same octets: only what must be escaped is, in upper case."""
    before, mark, query = _ESCAPE.sub(_unescape, path).partition("?")
    return _NOT_IN_PATH.sub(_escape, before) + mark + _NOT_IN_QUERY.sub(_escape, query)


def _unescape(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in match[0].encode("utf-8", "surrogatepass"))


class RobotsCache:
    """What sites allow, for all loops of a worker; those asked least recently make room."""

    def __init__(self, fetcher: Fetcher, config: DownloadConfig) -> None:
        self._fetcher = fetcher
        self._agent = config.user_agent
        self._deadline_s = config.robots_deadline_s
        self._want = Want(accept="text/plain, */*;q=0.5", max_bytes=MAX_BYTES, honor_opt_out=False, cut=True)
        self._known: collections.OrderedDict[Key, tuple[float, Robots]] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def known(self, target: Target) -> Robots | None:
        """Return what a site is known to allow; None where it must be asked."""
        key = (target.scheme, target.host, target.port)
        with self._lock:
            entry = self._known.get(key)
            if entry is None:
                return None
            if entry[0] < time.monotonic():
                self._forget(key)
                return None
            self._known.move_to_end(key)
            return entry[1]

    async def ask(self, target: Target) -> Robots:
        """Fetch a site's robots.txt, without remembering it."""
        deadline = Deadline(self._deadline_s)
        outcome: Fetched | Moved | None = None
        try:
            outcome = await self._fetcher.get(replace(target, path="/robots.txt"), deadline, self._want)
            for _ in range(_REDIRECTS):
                if isinstance(outcome, Moved):
                    outcome = await self._fetcher.get(self._fetcher.target(outcome.url), deadline, self._want)
        except Refused as refused:
            return _without_file(refused, at_home=outcome is None)
        if isinstance(outcome, Moved):
            return Robots()  # RFC 9309, 2.3.1.2: too many redirects are as good as no file
        text = outcome.body.decode("utf-8", "replace")
        if len(text) < _LONG_CHARS:
            return parse(text, self._agent)
        return await elsewhere(functools.partial(parse, text, self._agent), math.inf)

    def remember(self, target: Target, robots: Robots) -> None:
        """Remember an answer for a day, a failure for five minutes."""
        ends = time.monotonic() + (_FAILURE_LASTS_S if robots.problem else _LASTS_S)
        key = (target.scheme, target.host, target.port)
        with self._lock:
            if key in self._known:
                self._forget(key)
            self._known[key] = (ends, robots)
            self._bytes += _ENTRY_BYTES + robots.bytes
            while self._bytes > _CACHE_BYTES and len(self._known) > 1:
                self._forget(next(iter(self._known)))

    def forget_problems(self) -> None:
        """Forget which sites gave no answer: the network may be another one by now."""
        with self._lock:
            for key in [key for key, (_, robots) in self._known.items() if robots.problem]:
                self._forget(key)

    def _forget(self, key: Key) -> None:
        self._bytes -= _ENTRY_BYTES + self._known.pop(key)[1].bytes


def _without_file(refused: Refused, *, at_home: bool) -> Robots:
    """Return what a missing robots.txt allows: RFC 9309, 2.3.1.3 and 2.3.1.4; but 429 asks to come later."""
    reason = refused.reason
    if reason == http_status(204) or (re.fullmatch("http_[34]..", reason) and reason != http_status(429)):
        return Robots()
    if at_home and reason in _OF_THE_HOST:
        return Robots(problem=(reason, refused.detail))  # the image itself would meet the same
    return Robots(problem=(ROBOTS_UNREACHABLE, f"{reason} {refused.detail}".strip()))
