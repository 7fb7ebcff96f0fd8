"""The guarded fetch: one link from the open web to bytes in memory, whatever the other side does.

On every hop the name is resolved, every address checked, and the connection made to the checked address itself, so
there is no window for rebinding. One deadline covers names, connections, redirects and the body, however slowly it
drips. Sizes are capped as declared, as streamed and as decoded; no proxy, cookie or credential is used.
When which link is asked is decided elsewhere (`schedule`).
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import ssl
from dataclasses import dataclass

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import (
    BAD_RESPONSE,
    BAD_URL,
    CONNECT,
    RESET,
    TIMEOUT,
    TLS,
    TOO_MANY_REDIRECTS,
    Refused,
    http_status,
)
from altdiffusion.curation.web.addresses import (
    FORBIDDEN,
    canonical_table,
    check,
    literal,
    parse_url,
    redirected,
)
from altdiffusion.curation.web.answers import Answer
from altdiffusion.curation.web.connections import (
    Connection,
    Deadline,
    IdleConnections,
    allow_connections,
    connected,
    secured,
)
from altdiffusion.curation.web.contents import decoded, is_image
from altdiffusion.curation.web.event_loop import elsewhere, run
from altdiffusion.curation.web.names import Names
from altdiffusion.curation.web.optout import HEADERS, opt_out
from altdiffusion.curation.web.resolvers import InThreads, NameServers, Resolver, system_resolver
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.reject_reasons import Reason
from altdiffusion.urls import AROUND, Target, join

_WHOLE = frozenset({200, 201, 203})
"""Statuses whose body is the image (RFC 9110, 15.3); a 206 is taken where its range is the whole."""
_RANGE = re.compile(r"bytes\s+0-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_IDLE_PER_DOWNLOAD, _MOST_IDLE = 4, 1024


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole body and where it came from."""

    body: bytes
    url: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A redirect: the URL it names, absolute, not yet checked."""

    url: str


class Later(Refused):
    """A refusal by a server that is busy: 429 or 503, with the seconds of its Retry-After (0: none)."""

    def __init__(self, reason: Reason, retry_after_s: float) -> None:
        super().__init__(reason, "")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Want:
    """What is asked for and how much of it: a longer body is refused, or cut where `cut` is set."""

    accept: str
    max_bytes: int
    honor_opt_out: bool
    cut: bool = False


class _Stale(Exception):
    """A kept connection gave no answer: the other side has closed it, or sent what was left of another answer."""


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the one TLS context of this process: building one costs 40 ms of CPU, more than the rest of a fetch.

    Raises:
        AltDiffusionError: the file of certificate authorities cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise AltDiffusionError(f"ca_file {ca_file}", f"cannot be read ({error})", "give a PEM file") from error


class Fetcher:
    """Fetches links by the rules of a DownloadConfig; one for all loops of a worker.

    Args:
        resolver: asked for every connection, whatever it answered before; None for the config's name servers or the
            system's resolver, whose answers are remembered.
    """

    def __init__(self, config: DownloadConfig, resolver: Resolver | None = None) -> None:
        self.config = config
        self._names = _names(config) if resolver is None else Names(InThreads(resolver), remembers=False)
        self._connect_to = canonical_table(config.connect_to)
        self._allow = tuple(ipaddress.ip_network(network) for network in config.allow_private)
        idle = min(_IDLE_PER_DOWNLOAD * config.threads, _MOST_IDLE)
        allow_connections(2 * config.threads + idle, f"download.threads {config.threads}")  # robots.txt files too
        self._idle = IdleConnections(idle)
        self._image = Want(
            accept="image/jpeg, image/png, image/webp, image/gif, image/*;q=0.5",
            max_bytes=config.max_bytes,
            honor_opt_out=config.honor_opt_out,
        )
        tls_context(config.ca_file)

    def target(self, url: str) -> Target:
        """Return the parts of a URL.

        Raises:
            Refused: bad_url, blocked_scheme, blocked_port.
        """
        return parse_url(url, self.config.ports)

    def fetch(self, url: str, want: Want | None = None, deadline_s: float | None = None) -> Fetched:
        """Return the body of a link, behind its redirects, in one attempt, on a loop of its own.

        Raises:
            Refused: with one of: bad_url, blocked_scheme, blocked_port, blocked_address, dns, connect, tls, reset,
                timeout, too_many_redirects, http_<status>, opt_out:<signal>, content_encoding, bad_response,
                too_large, truncated.
        """
        deadline = Deadline(self.config.deadline_s if deadline_s is None else deadline_s)
        for _ in range(self.config.max_redirects + 1):
            outcome = run(self.get(self.target(url), deadline, want))
            if isinstance(outcome, Fetched):
                return outcome
            url = outcome.url
        raise Refused(TOO_MANY_REDIRECTS, str(self.config.max_redirects))

    async def get(self, target: Target, deadline: Deadline, want: Want | None = None) -> Fetched | Moved:
        """Make one request.

        Raises:
            Refused: as `fetch`, but for too_many_redirects; Later among them.
        """
        want = want or self._image
        kept = self._idle.take((target.scheme, target.host, target.port))
        if kept is not None:
            kept.deadline = deadline
            try:
                return await self._exchange(target, kept, want)
            except _Stale:
                pass
        return await self._exchange(target, await self._connect(target, deadline), want)

    def forget_failures(self) -> None:
        """Forget which names did not exist: the network may be another one by now."""
        self._names.forget_failures()

    def close(self) -> None:
        """Close what is kept open."""
        self._idle.close()

    async def _connect(self, target: Target, deadline: Deadline) -> Connection:
        """Return a connection to a checked address; TLS is verified against the name in the URL."""
        written = literal(target.host)
        if written is not None:
            check(str(written), self._allow)  # also where connect_to leads elsewhere
        host, port = redirected(self._connect_to, target.host, target.port)
        numeric = literal(host)
        deadline.left()
        answers = [str(numeric)] if numeric is not None else await self._names.addresses(host, port, deadline.end)
        addresses = [check(answer, self._allow) for answer in answers]  # one bad answer refuses the name
        problem: OSError | None = None
        for address in addresses[:4]:
            try:
                sock = await connected(address, port, self._attempt_end(deadline))
                if target.scheme == "https":
                    context = tls_context(self.config.ca_file)
                    sock = await secured(sock, context, target.host, self._attempt_end(deadline))
                return Connection(sock, deadline)
            except OSError as error:
                if isinstance(error, ssl.SSLError) and not isinstance(error, TimeoutError):
                    raise Refused(TLS, str(error)) from error
                problem = error
        if isinstance(problem, TimeoutError):
            raise Refused(TIMEOUT, "connecting") from problem
        raise Refused(CONNECT, os.strerror(problem.errno) if problem and problem.errno else "") from problem

    def _attempt_end(self, deadline: Deadline) -> float:
        """Return when one attempt to connect ends."""
        return deadline.end - max(deadline.left() - self.config.connect_timeout_s, 0.0)

    async def _exchange(self, target: Target, connection: Connection, want: Want) -> Fetched | Moved:
        """Make one request on a connection, which is then kept for the next one, or closed."""
        used, keep = connection.requests, False
        try:
            await connection.send(
                f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: {self.config.user_agent}\r\n"
                f"Accept: {want.accept}\r\nAccept-Encoding: identity\r\n\r\n".encode("ascii")
            )
            answer = Answer(connection)
            await self._read_head(answer, used=bool(used))
            try:
                return await self._answer(target, answer, want, connection.deadline)
            finally:
                if not answer.is_read:
                    await answer.skip(connection.waiting())
                keep = answer.is_read
        except TimeoutError as error:
            raise Refused(TIMEOUT, "total time") from error
        except (EOFError, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            if used and connection.is_unanswered:
                raise _Stale from error
            raise Refused(RESET, "connection closed or reset") from error
        except ssl.SSLError as error:
            raise Refused(TLS, str(error)) from error
        except OSError as error:
            raise Refused(RESET, os.strerror(error.errno) if error.errno else str(error)) from error
        finally:
            connection.requests += 1
            if keep:
                self._idle.give((target.scheme, target.host, target.port), connection)
            else:
                connection.end()

    async def _read_head(self, answer: Answer, *, used: bool) -> None:
        try:
            await answer.read_head()
        except Refused as refused:
            if used and refused.reason == BAD_RESPONSE:  # what an earlier answer left, and came late: ask again
                raise _Stale from None
            raise

    async def _answer(self, target: Target, answer: Answer, want: Want, deadline: Deadline) -> Fetched | Moved:
        status, headers = answer.status, answer.headers
        if want.honor_opt_out and not HEADERS.isdisjoint(headers):
            signal = opt_out(headers, self.config.user_agent, noindex=self.config.honor_noindex)
            if signal is not None:
                raise Refused(signal, "")
        if status in _REDIRECTS:
            return Moved(url=_location(target, headers.get("Location"), status))
        if status in (429, 503):
            raise Later(http_status(status), _retry_after_s(headers.get("Retry-After")))
        if status not in _WHOLE and status != 206:
            raise Refused(http_status(status), "")
        part = _part(headers.get("Content-Range")) if status == 206 else None
        if status == 206 and part is None:
            raise Refused(http_status(206), "not the whole range")
        body = await answer.read(want.max_bytes, cut=want.cut)
        if part is not None and len(body) != part and not want.cut:
            raise Refused(http_status(206), f"{len(body)} of {part} bytes")
        names = headers.tokens("Content-Encoding")
        if names and not is_image(body):
            work = functools.partial(decoded, body, names, want.max_bytes, text=want.cut)
            body = await elsewhere(work, deadline.end)
        return Fetched(body=body, url=target.url)


def _names(config: DownloadConfig) -> Names:
    servers = config.name_servers
    return Names(NameServers(servers, config.connect_timeout_s) if servers else InThreads(system_resolver))


def _part(content_range: str) -> int | None:
    """Return the bytes of a range that is the whole: `bytes 0-99/100`; None where it is not."""
    match = _RANGE.fullmatch(content_range)
    return int(match[2]) if match and int(match[1]) + 1 == int(match[2]) else None


def _location(base: Target, location: str, status: int) -> str:
    """Return where a redirect leads, absolute, not yet checked.

    Raises:
        Refused: http_<status> without a Location, bad_url.
    """
    text = _utf8(location).strip(AROUND)
    if not text:
        raise Refused(http_status(status), "no Location")
    if FORBIDDEN.search(text):
        raise Refused(BAD_URL, "Location: control character or backslash")
    return text if _ABSOLUTE.match(text) else join(base, text)


def _utf8(header: str) -> str:
    """Return a header's text: headers are read as Latin-1, but a Location often holds UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _retry_after_s(value: str | None) -> float:
    """Return seconds of a Retry-After header; dates and nonsense count as none."""
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
