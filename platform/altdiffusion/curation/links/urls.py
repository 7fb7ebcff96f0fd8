"""The key of a URL: two links with one key are taken for one picture. It is compared and hashed, never fetched.

Rules (RFC 3986, section 6, and what trackers append), for http and https links; others are their own key:

1. The scheme is left out: the same path over http and https is one picture.
2. The host is put into lower case, and loses one trailing dot. User names stay.
3. The scheme's default port (80, 443) is dropped, and so is an empty one.
4. The fragment is dropped.
5. An empty path is "/".
6. In path and query, percent-encoded unreserved characters (letters, digits, "-._~") are decoded; the hex digits of
   all others are put into upper case. What is no percent-encoding stays as it is.
7. Tracking parameters (`utm_*` and those in TRACKING) are dropped from the query; the others stay, in their order. A
   query of which nothing is left is dropped with its "?".

Nothing else is touched: the case of the path, "www.", a trailing slash, dot segments and the order of parameters may
all mean another picture. Idempotent but for the scheme, which a key does not have.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.hashing import rows_with

TRACKING = frozenset(
    {
        "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "yclid", "twclid", "ttclid", "igshid",
        "mc_cid", "mc_eid", "_ga", "_gl",
    }
)  # fmt: skip
_SCHEME = r"^https?://"
# A link that needs no more than its scheme cut off, if there is no tracking parameter in its query. An escape counts
# as normal where it is upper case and of a character that is not unreserved.
_ESCAPE = r"%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
_NORMAL = rf"^https?://[a-z0-9\-.]*[a-z0-9\-]/(?:[^#?%]|{_ESCAPE})*(?:\?(?:[^#%]|{_ESCAPE})+)?$"
_TRACKED = rf"[?&](?:utm_|(?:{'|'.join(sorted(TRACKING))})(?:=|&|$))"
_PARTS = re.compile(r"(https?)://([^/?#]+)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"((?:[^@]*@)?)(.*?)(?::([0-9]*))?", re.DOTALL)
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PORTS = {"http": "80", "https": "443"}


def url_keys(urls: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The key of each link, string; null stays null.

    Links that are normal but for their scheme (most are) are recognised and cut for the whole column at once; the
    others go through `url_key` one by one.
    """
    array = urls.combine_chunks() if isinstance(urls, pa.ChunkedArray) else urls
    usual = pc.fill_null(pc.match_substring_regex(array, _NORMAL), False).to_numpy(zero_copy_only=False)
    asking = rows_with(array, "?")
    tracked = pc.match_substring_regex(array.take(pa.array(asking)), _TRACKED).to_numpy(zero_copy_only=False)
    usual[asking[tracked.astype(bool)]] = False
    keys: Any = pc.replace_substring_regex(array, _SCHEME, "", max_replacements=1)
    if usual.all():
        return keys
    mask = pa.array(~usual)
    others = pa.array([None if url is None else url_key(url) for url in array.filter(mask).to_pylist()], pa.string())
    return pc.replace_with_mask(keys, mask, others)


def url_key(url: str) -> str:
    """The key of one link: the rules as stated above."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return url
    scheme, authority, path, query = parts.groups()
    host = _HOST.fullmatch(authority)
    assert host is not None
    user, name, port = host.groups()
    place = user + name.lower().removesuffix(".")
    if port and port != _PORTS[scheme.lower()]:
        place += f":{port}"
    kept = [item for item in (query or "").split("&") if not _is_tracking(item.partition("=")[0])]
    rest = "&".join(kept)
    return place + _unescape(path or "/") + (f"?{_unescape(rest)}" if rest else "")


def _is_tracking(name: str) -> bool:
    return name.startswith("utm_") or name in TRACKING


def _unescape(text: str) -> str:
    def plain(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else found[0].upper()

    return _PERCENT.sub(plain, text) if "%" in text else text
