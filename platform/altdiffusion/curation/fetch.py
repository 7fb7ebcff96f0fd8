"""The guarded fetch: one link from the open web to bytes in memory, whatever the other side does.

On every hop the name is resolved, every address checked, and the connection made to the checked address itself, so
there is no window for rebinding. One deadline covers names, connections, redirects and the body, however slowly it
drips. Sizes are capped as declared and as streamed; nothing is decompressed; no proxy, cookie or credential is used.
"""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.addresses import (
    Refused,
    Resolver,
    SystemResolver,
    Target,
    check,
    literal,
    parse_url,
    redirected,
)
from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.optout import opt_out
from altdiffusion.errors import AltDiffusionError

_CHUNK = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({"timeout", "connect", "reset", "http_429", "http_503"})
_MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole body and where it came from."""

    body: bytes
    url: str


class _Deadline:
    """Seconds left until a point in time; Refused when there are none."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Refused("timeout", "total time")
        return left

    def extend(self, seconds: float) -> None:
        """Gives back time that was not the other side's fault."""
        self._end += seconds


class _TimedReader(io.RawIOBase):
    """Reads of a socket, each of which may only take what the deadline leaves."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        super().__init__()
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


class _TimedSocket:
    """What http.client needs of a socket, with timed reads and writes; who made the socket closes it."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline), _CHUNK)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def close(self) -> None:
        """Called by http.client while it still reads the answer: nothing to do."""


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The one TLS context of this process: building one costs 40 ms of CPU, more than the rest of a fetch.

    Raises:
        AltDiffusionError: the file of certificate authorities cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise AltDiffusionError(f"ca_file {ca_file}", f"cannot be read ({error})", "give a PEM file") from error


class Fetcher:
    """Fetches links by the rules of a DownloadConfig; one for all threads of a worker."""

    def __init__(self, config: DownloadConfig, resolver: Resolver | None = None) -> None:
        self.config = config
        self._resolver = resolver or SystemResolver()
        self._allow = tuple(ipaddress.ip_network(network) for network in config.allow_private)
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()
        tls_context(config.ca_file)

    def fetch(self, url: str) -> Fetched:
        """The body of a link.

        Raises:
            Refused: with one of: bad_url, blocked_scheme, blocked_port, blocked_address, dns, connect, tls, reset,
                timeout, too_many_redirects, http_<status>, opt_out:<signal>, content_encoding, bad_response,
                too_large, truncated.
        """
        wait = self.config.retry_wait_s
        for attempt in range(self.config.retries + 1):
            try:
                return self._attempt(url)
            except _Again as again:
                if attempt == self.config.retries:
                    raise Refused(again.reason, again.detail) from again
                time.sleep(min(max(wait, again.retry_after_s), _MAX_RETRY_AFTER_S))
                wait *= 2
        raise AssertionError("unreachable")

    def _attempt(self, url: str) -> Fetched:
        deadline = _Deadline(self.config.deadline_s)
        try:
            for _ in range(self.config.max_redirects + 1):
                target = parse_url(url, self.config.ports)
                deadline.extend(self._take_turn(target.host))
                with self._connect(target, deadline) as sock:
                    found = self._exchange(target, sock, deadline)
                if isinstance(found, Fetched):
                    return found
                try:
                    url = urllib.parse.urljoin(target.url, found)
                except ValueError as error:
                    raise Refused("bad_url", f"Location: {error}") from error
            raise Refused("too_many_redirects", str(self.config.max_redirects))
        except Refused as refused:
            if refused.reason in _AGAIN and not isinstance(refused, _Again):
                raise _Again(refused.reason, refused.detail) from refused
            raise

    def _take_turn(self, host: str) -> float:
        """Waits until this worker may ask this host again; returns the seconds waited."""
        if self.config.per_host_per_s is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            turn = max(self._next.get(host, now), now)
            self._next[host] = turn + 1.0 / self.config.per_host_per_s
        time.sleep(turn - now)
        return turn - now

    def _connect(self, target: Target, deadline: _Deadline) -> socket.socket:
        """A connection to a checked address; TLS is verified against the name in the URL."""
        written = literal(target.host)
        if written is not None:
            check(str(written), ())  # the exceptions are for names: a URL from outside never names an address inside
        host, port = redirected(self.config.connect_to, target.host, target.port)
        numeric = literal(host)
        answers = [str(numeric)] if numeric is not None else self._resolver(host, port, deadline.left())
        addresses = [check(answer, self._allow) for answer in answers]  # one bad answer refuses the name
        problem: OSError | None = None
        for address in addresses[:4]:
            sock = None
            try:
                timeout = min(deadline.left(), self.config.connect_timeout_s)
                sock = socket.create_connection((address, port), timeout=timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if target.scheme == "http":
                    return sock
                sock.settimeout(min(deadline.left(), self.config.connect_timeout_s))
                return tls_context(self.config.ca_file).wrap_socket(sock, server_hostname=target.host)
            except OSError as error:
                if sock is not None:
                    sock.close()
                if isinstance(error, ssl.SSLError) and not isinstance(error, TimeoutError):
                    raise Refused("tls", str(error)) from error
                problem = error
        if isinstance(problem, TimeoutError):
            raise Refused("timeout", "connecting") from problem
        raise Refused("connect", os.strerror(problem.errno) if problem and problem.errno else "") from problem

    def _exchange(self, target: Target, sock: socket.socket, deadline: _Deadline) -> Fetched | str:
        """One request; the body, or the Location of a redirect."""
        timed = _TimedSocket(sock, deadline)
        try:
            connection = http.client.HTTPConnection(target.host)
            connection.sock = timed  # type: ignore[assignment]
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            for name, value in (
                ("Host", target.authority),
                ("User-Agent", self.config.user_agent),
                ("Accept", "image/jpeg, image/png, image/webp, image/gif, image/*;q=0.5"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ):
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            try:
                return self._answer(target, response)
            finally:
                response.close()
        except TimeoutError as error:
            raise Refused("timeout", "total time") from error
        except ConnectionError as error:  # also http.client's RemoteDisconnected
            raise Refused("reset", "connection closed or reset") from error
        except http.client.IncompleteRead as error:
            raise Refused("truncated", "chunked body ends early") from error
        except http.client.InvalidURL as error:
            raise Refused("bad_url", str(error)) from error
        except (http.client.HTTPException, ValueError) as error:
            raise Refused("bad_response", f"{type(error).__name__}: {error}"[:200]) from error
        except ssl.SSLError as error:
            raise Refused("tls", str(error)) from error
        except OSError as error:
            raise Refused("reset", os.strerror(error.errno) if error.errno else str(error)) from error

    def _answer(self, target: Target, response: http.client.HTTPResponse) -> Fetched | str:
        status, headers = response.status, response.headers
        if self.config.honor_opt_out:
            signal = opt_out(headers, self.config.user_agent)
            if signal is not None:
                raise Refused(signal, "")
        if status in _REDIRECTS:
            location = headers.get("Location")
            if not location:
                raise Refused(f"http_{status}", "no Location")
            return _utf8(str(location))
        if status in (429, 503):
            raise _Again(f"http_{status}", "", _retry_after_s(headers.get("Retry-After")))
        if status != 200:
            raise Refused(f"http_{status}", "")
        encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise Refused("content_encoding", encoding[:40])
        lengths = {value.strip() for value in headers.get_all("Content-Length") or ()}
        if len(lengths) > 1 or not all(value.isascii() and value.isdigit() for value in lengths):
            raise Refused("bad_response", "Content-Length")
        declared = int(lengths.pop()) if lengths and not response.chunked else None
        if declared is not None and declared > self.config.max_bytes:
            raise Refused("too_large", f"{declared} bytes declared")
        body = bytearray()
        while chunk := response.read(min(_CHUNK, self.config.max_bytes + 1 - len(body))):
            body += chunk
            if len(body) > self.config.max_bytes:
                raise Refused("too_large", f"more than {self.config.max_bytes} bytes")
        if declared is not None and len(body) != declared:
            raise Refused("truncated", f"{len(body)} of {declared} bytes")
        return Fetched(body=bytes(body), url=target.url)


class _Again(Refused):
    """A refusal that a second attempt may mend."""

    def __init__(self, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s


def _utf8(header: str) -> str:
    """http.client reads headers as Latin-1; a Location often holds UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header; dates and nonsense count as none."""
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
