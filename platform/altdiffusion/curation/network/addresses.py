"""Where a URL may lead: its parts, the addresses behind its name, and which of them are public.

Nothing here trusts a name: what is checked is the address that is then connected to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import idna

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int, float], Sequence[str]]
"""(host, port, seconds it may take) -> addresses as text."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
# A link as most are, about which nothing has to be found out: a name that ends in letters, nothing to escape.
_PLAIN = re.compile(
    r"(https?)://((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63})(?::([0-9]{1,5}))?"
    r"(/[A-Za-z0-9/%:@!$&'()*+,;=~._-]*(?:\?[A-Za-z0-9/%:@!$&'()*+,;=~._?\[\]|^`{}-]+)?)"
)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890); ipaddress of Python 3.11 calls some of them global
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "64:ff9b:1::/48",  # local NAT64 (RFC 8215)
        "fec0::/10",  # site-local (RFC 3879)
        "::/96",  # IPv4-compatible (RFC 4291)
        "100::/64",  # discard (RFC 6666)
        "2001::/23",  # protocol assignments (RFC 2928), Teredo among them: it embeds the address of somebody's NAT
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
    )
)
_CACHE_S = 60.0
_CACHE_NAMES = 65536


class Refused(Exception):
    """A link that is not fetched, or whose answer is not taken: `reason` is counted, `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checked URL. `host` is lower-case ASCII (IPv6 without brackets), `path` starts with / and is ASCII."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_url(url: str, ports: Sequence[int]) -> Target:
    """Takes a URL apart, strictly.

    Raises:
        Refused: bad_url (control characters, backslash, user info, impossible host or port), blocked_scheme,
            blocked_port.
    """
    text = url.strip(" ")
    plain = _PLAIN.fullmatch(text)
    if plain is not None and len(text) <= 8192 and len(plain[2]) <= 253:
        port = int(plain[3] or {"http": 80, "https": 443}[plain[1]])
        if port in ports:
            return Target(scheme=plain[1], host=plain[2], port=port, path=plain[4])
    if _FORBIDDEN.search(text) or len(text) > 8192:
        raise Refused("bad_url", "control character, backslash or longer than 8192")
    scheme = text.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        raise Refused("blocked_scheme", scheme[:40])
    try:
        parts = urllib.parse.urlsplit(text)
        stated = parts.port
    except ValueError as error:
        raise Refused("bad_url", str(error)) from error
    if "@" in parts.netloc:
        raise Refused("bad_url", "user info")
    host = _host(parts.hostname or "")
    port = {"http": 80, "https": 443}[scheme] if stated is None else stated
    if port not in ports:
        raise Refused("blocked_port", str(port))
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]|^`{}")
    return Target(scheme=scheme, host=host, port=port, path=path)


def _host(host: str) -> str:
    if not host:
        raise Refused("bad_url", "no host")
    host = host.rstrip(".")
    if literal(host) is not None:
        return host.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise Refused("bad_url", f"host: {error}"[:200]) from error
    host = host.lower()
    if not host or len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise Refused("bad_url", "host is no name")
    return host


def literal(host: str) -> Address | None:
    """The address a host is, if it is one, in any of its spellings: 127.1 and 0x7f000001 are 127.0.0.1."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):  # what ends in a number is an address (WHATWG URL, 3.5)
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def is_public(address: Address) -> bool:
    """Whether an address is global unicast, with embedded IPv4 addresses judged by themselves."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is None and (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE:  # ISATAP (RFC 5214)
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def check(address: str, allow: Sequence[Network]) -> str:
    """The address, if it may be connected to.

    Raises:
        Refused: blocked_address.
    """
    found = literal(address)
    if found is None:
        raise Refused("blocked_address", f"{address!r} is no address")
    inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped else found
    if is_public(found) or any(inner in network for network in allow if network.version == inner.version):
        return str(found)
    raise Refused("blocked_address", str(found))


def redirected(connect_to: Mapping[str, str], host: str, port: int) -> tuple[str, int]:
    """Where to connect instead, like curl's --connect-to; an empty host or port on the left matches any."""
    for key in (f"{host}:{port}", f"{host}:", f":{port}", ":"):
        if key in connect_to:
            new_host, _, new_port = connect_to[key].rpartition(":")
            return new_host.strip("[]") or host, int(new_port)
    return host, port


class SystemResolver:
    """getaddrinfo with a deadline and a short cache; safe for many threads.

    The C call cannot be interrupted, so each runs in a daemon thread of its own that is left behind when time is up.
    A cached answer is not a rebinding hole: every use is checked and then connected to as the address itself.
    """

    def __init__(self) -> None:
        self._cache: dict[str, tuple[float, Sequence[str]]] = {}
        self._lock = threading.Lock()

    def __call__(self, host: str, port: int, timeout_s: float) -> Sequence[str]:
        now = time.monotonic()
        with self._lock:
            known = self._cache.get(host)
        if known is not None and known[0] > now:
            return known[1]
        answer: list[str] = []
        problem: list[OSError] = []

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer.extend(dict.fromkeys(str(entry[4][0]) for entry in found))
            except (OSError, UnicodeError) as error:
                problem.append(error if isinstance(error, OSError) else OSError(str(error)))

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            raise Refused("timeout", f"name {host}")
        if problem or not answer:
            raise Refused("dns", str(problem[0]) if problem else "no address")
        with self._lock:
            if len(self._cache) >= _CACHE_NAMES:
                self._cache.clear()
            self._cache[host] = (now + _CACHE_S, answer)
        return answer
