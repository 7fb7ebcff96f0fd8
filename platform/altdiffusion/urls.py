"""One form of a URL, for all that asks whether two links are the same: fetch, robots, lists and duplicates.

`parse` reads a link as browsers do (the WHATWG URL standard, host names by UTS 46, both by the library ada) and
returns what will be requested, a `Target`: from it come the request line, the Host header, the site whose robots.txt
counts and the host whose turn it is. Beyond the standard, white space, control characters and byte order marks around
the link are cut off, and so are all dots behind the host.

`url_key` is what links are compared by: two links that request the same have one key, and so have some that differ in
what no server distinguishes. Made from the Target (RFC 3986, section 6, and what trackers append):

1. The scheme is left out: the same path over http and https is one image. A port that is its scheme's default is too.
2. Percent-encoded unreserved characters (letters, digits, "-._~") are decoded, the hex digits of all others are put
   into upper case, and characters that no URL may hold (`{|}` and such) are encoded. A "%" before anything else stays.
3. Tracking parameters (`utm_*` and those in TRACKING) are dropped from the query; the others stay, in their order. A
   query of which nothing is left is dropped with its "?".
4. User names stay, so that a link that is never fetched (`parse_url` refuses them) is equal to no other.

Nothing else is touched: the case of the path, "www.", a trailing slash and the order of parameters may all mean another
image. A text that is not an http or https link is its own key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ada_url
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.hashing import rows_with

TRACKING = frozenset(
    {
        "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "yclid", "twclid", "ttclid", "igshid",
        "mc_cid", "mc_eid", "_ga", "_gl",
    }
)  # fmt: skip
PORTS = {"http": 80, "https": 443}
AROUND = "".join(
    map(chr, (*range(0x21), *range(0x7F, 0xA1), 0x1680, *range(0x2000, 0x200C), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060,
              0x3000, 0xFEFF))
)  # fmt: skip
"""White space, control characters and byte order marks: what is not a part of the link between them."""
_START = re.compile(r"https?://[^/\\?#]", re.IGNORECASE)
_PARTS = re.compile(r"(https?)://((?:[^/?#@]*@)?)(\[[^\]]*\]|[^/?#:]+)((?::[0-9]+)?)([^#]*)")

# A link of which only the scheme is cut off, if there is no tracking parameter in its query: ada gives it back
# as it is. A host has no label that begins with "xn--", and its last one has letters only (else it may be an address);
# no part of the path begins with a dot; an escape is upper case, and not of an unreserved character.
_LABEL = r"(?:[a-wyz0-9][a-z0-9\-]*|x(?:[a-mo-z0-9\-][a-z0-9\-]*)?|xn(?:[a-z0-9][a-z0-9\-]*)?)"
_ESCAPE = r"%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
_FIRST = rf"[A-Za-z0-9\-_~!$&'()*+,;=:@]|{_ESCAPE}"
_NORMAL = (
    rf"^https?://(?:{_LABEL}\.)*[a-z]+(?:/(?:(?:{_FIRST})(?:\.|{_FIRST})*)?)+"
    rf"(?:\?(?:[A-Za-z0-9\-._~!$&()*+,;=:@/?]|{_ESCAPE})+)?$"
)
_TRACKED = rf"[?&](?:utm_|(?:{'|'.join(sorted(TRACKING))})(?:=|&|$))"
_SCHEME = r"^https?://"
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")
_DECODED = re.compile(r"(?<!%)(?<!%[0-9A-Fa-f])%([0-9A-Fa-f]{2})")
"""What may be decoded: behind a stray "%" the characters would make an escape that was none (`%%34%31`)."""
_ILLEGAL = re.compile(r"[^A-Za-z0-9\-._~%!$&'()*+,;=:@/?]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a link requests. `host` is lower-case ASCII (IPv6 without brackets), `path` starts with / and is ASCII."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The one spelling of the link: `parse` of it is this target again."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse(url: str) -> Target | None:
    """Return what a link requests; None where it is not an http or https link with a host.

    User names are left out: whether a link with one is fetched is for the caller to decide.
    """
    parsed = _parsed(url)
    return None if parsed is None else parsed[0]


def join(base: Target, reference: str) -> str:
    """Return a reference of a document (a Location) as an absolute link; as it is where it cannot be joined."""
    try:
        return str(ada_url.join_url(base.url, reference))
    except ValueError:
        return reference


def _parsed(url: str) -> tuple[Target, str] | None:
    """Return the target of a link, and its user names and password with the "@" behind them, where it has them."""
    text = url.strip(AROUND)
    found = _split(text) if _START.match(text) else None
    while found is not None and found[3].endswith("."):  # without its dots it may be an address
        scheme, user, host, port, path = found.groups()
        found = _split(f"{scheme}://{user}{host.rstrip('.')}{port}{path}")
    if found is None:
        return None
    scheme, user, host, port, path = found.groups()
    path = path[:-1] if path.endswith("?") and path.find("?") == len(path) - 1 else path
    port = int(port[1:]) if port else PORTS[scheme]
    return Target(scheme=scheme, host=host.strip("[]"), port=port, path=path), user


def _split(text: str) -> re.Match[str] | None:
    """Return scheme, user, host, port and path of a link as ada writes it; None where ada refuses it."""
    try:
        return _PARTS.match(ada_url.normalize_url(text))
    except ValueError:
        return None


def url_keys(urls: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the key of each link, string; null stays null."""
    return keys_and_links(urls)[0]


def keys_and_links(urls: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Return the key of each link, string, null where it is null; and [N] whether each is an http or https link.

    Links that are normal but for their scheme (most are) are recognised and cut for the whole column at once; the
    others go through `url_key` one by one.
    """
    array = urls.combine_chunks() if isinstance(urls, pa.ChunkedArray) else urls
    usual = pc.fill_null(pc.match_substring_regex(array, _NORMAL), False).to_numpy(zero_copy_only=False)
    asking = rows_with(array, "?")
    if len(asking):
        tracked = pc.match_substring_regex(array.take(pa.array(asking)), _TRACKED).to_numpy(zero_copy_only=False)
        usual[asking[tracked.astype(bool)]] = False
    keys: Any = pc.replace_substring_regex(array, _SCHEME, "", max_replacements=1)
    if usual.all():
        return keys, usual
    mask = pa.array(~usual)
    others = [None if url is None else _key(url) for url in array.filter(mask).to_pylist()]
    links = usual.copy()
    links[~usual] = [other is not None and other[1] for other in others]
    given = pa.array([None if other is None else other[0] for other in others], pa.string())
    return pc.replace_with_mask(keys, mask, given), links


def url_key(url: str) -> str:
    """Return the key of one link: the rules as stated above."""
    return _key(url)[0]


def target_key(target: Target, user: str = "") -> str:
    """Return the key of what is requested; `user` is in front of it."""
    path = _normal(target.path)
    if "?" in path:
        path, _, query = path.partition("?")
        kept = "&".join(item for item in query.split("&") if not _is_tracking(item.partition("=")[0]))
        path += f"?{kept}" if kept else ""
    return user + target.authority + path


def _key(url: str) -> tuple[str, bool]:
    parsed = _parsed(url)
    return (url, False) if parsed is None else (target_key(*parsed), True)


def _is_tracking(name: str) -> bool:
    return name.startswith("utm_") or name in TRACKING


def _normal(text: str) -> str:
    if "%" in text:
        text = _DECODED.sub(_plain, _PERCENT.sub(lambda match: match[0].upper(), text))
    return _ILLEGAL.sub(lambda match: f"%{ord(match[0]):02X}", text)


def _plain(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0]
