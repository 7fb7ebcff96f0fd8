"""Where a URL may lead: its parts, the addresses behind its name, and which of them are public.

Nothing here trusts a name: what is checked is the address that is then connected to.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence

from altdiffusion.curation.rejects import BAD_URL, BLOCKED_ADDRESS, BLOCKED_PORT, BLOCKED_SCHEME, Refused
from altdiffusion.urls import AROUND, PORTS, Target, parse

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
"""What no link that is fetched may hold: other software would read the link differently."""
MAX_CHARS = 8192
_HOST_CHARS = 253
# A link like most, which needs no further examination: a name that ends in letters and holds nothing to decode,
# no part of the path that begins with a dot, nothing to escape.
_PLAIN = re.compile(
    r"(https?)://((?!(?:[^/]*\.)?xn--)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63})(?::([0-9]{1,5}))?"
    r"(?![^?]*/(?:\.|%2[eE]))"
    r"(/[A-Za-z0-9/%:@!$&'()*+,;=~._-]*(?:\?[A-Za-z0-9/%:@!$&()*+,;=~._?\[\]|^`{}-]+)?)"
)
_AUTHORITY = re.compile(r"^https?://([^/?#]*).*", re.IGNORECASE | re.DOTALL)
_ZONE = re.compile(r"https?://\[[^\]/?#]*%", re.IGNORECASE)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_ADDRESSES = 1 << 14
"""What was found about so many addresses and names is remembered: parsing one takes as long as a small request."""
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
        "2001::/23",  # protocol assignments (RFC 2928), Teredo among them: it embeds the address of a NAT
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
    )
)


def parse_url(url: str, ports: Sequence[int]) -> Target:
    """Take a link apart, strictly: what `urls.parse` would repair although it hides something is refused.

    Raises:
        Refused: bad_url (control characters, backslash, user info, invalid host or port), blocked_scheme,
            blocked_port, blocked_address (an address with a zone, which means one's own network).
    """
    text = url.strip(AROUND)
    plain = _PLAIN.fullmatch(text)
    if plain is not None and len(text) <= MAX_CHARS and len(plain[2]) <= _HOST_CHARS:
        port = int(plain[3] or PORTS[plain[1]])
        if port in ports:
            return Target(scheme=plain[1], host=plain[2], port=port, path=plain[4])
    if FORBIDDEN.search(text) or len(text) > MAX_CHARS:
        raise Refused(BAD_URL, f"control character, backslash or longer than {MAX_CHARS}")
    scheme = text.partition(":")[0].lower()
    if scheme not in PORTS:
        raise Refused(BLOCKED_SCHEME, scheme[:40])
    if _ZONE.match(text):
        raise Refused(BLOCKED_ADDRESS, "an address with a zone")
    if "@" in _AUTHORITY.sub(r"\1", text):
        raise Refused(BAD_URL, "user info")
    target = parse(text)
    if target is None:
        raise Refused(BAD_URL, "host or port")
    if not may_be_asked(target.host):
        raise Refused(BAD_URL, "host is not a name")
    if target.port not in ports:
        raise Refused(BLOCKED_PORT, str(target.port))
    return target


def may_be_asked(host: str) -> bool:
    """Return whether a host as `urls.parse` writes it is an address or a name that can have one."""
    if literal(host) is not None:
        return True
    return len(host) <= _HOST_CHARS and all(_LABEL.fullmatch(label) for label in host.split("."))


@functools.lru_cache(_ADDRESSES)
def literal(host: str) -> Address | None:
    """Return the address a host is, if it is one, in any of its spellings: 127.1 and 0x7f000001 are 127.0.0.1."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):  # what ends in a number is an address (WHATWG URL, 3.5)
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):  # the latter: a NUL, or what is not ASCII
        return None


@functools.lru_cache(_ADDRESSES)
def is_public(address: Address) -> bool:
    """Return whether an address is global unicast, with embedded IPv4 addresses judged by themselves."""
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
    """Return the address, if it may be connected to.

    Raises:
        Refused: blocked_address.
    """
    parsed = literal(address)
    if parsed is None:
        raise Refused(BLOCKED_ADDRESS, f"{address!r} is no address")
    inner = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped else parsed
    if is_public(parsed) or any(inner in network for network in allow if network.version == inner.version):
        return str(parsed)
    raise Refused(BLOCKED_ADDRESS, str(parsed))


def canonical_table(connect_to: Mapping[str, str]) -> dict[str, str]:
    """Return `connect_to` with hosts as `urls.parse` writes them: an entry holds however it is spelled."""
    table = {}
    for key, where in connect_to.items():
        host, _, port = key.rpartition(":")
        target = parse(f"http://{host}/") if host else None
        table[f"{host if target is None else target.host}:{port}"] = where
    return table


def redirected(connect_to: Mapping[str, str], host: str, port: int) -> tuple[str, int]:
    """Return where to connect instead, like curl's --connect-to; an empty host or port on the left matches any."""
    for key in (f"{host}:{port}", f"{host}:", f":{port}", ":"):
        if key in connect_to:
            new_host, _, new_port = connect_to[key].rpartition(":")
            return new_host.strip("[]") or host, int(new_port)
    return host, port
