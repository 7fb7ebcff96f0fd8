"""Keys of URLs: the rules as stated, one by one and together, and the column's short cut equals them."""

from __future__ import annotations

import urllib.parse

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.rejects import Refused
from altdiffusion.curation.web.addresses import parse_url
from altdiffusion.urls import TRACKING, keys_and_links, parse, url_key, url_keys


def keys(*urls: str | None) -> list[str | None]:
    found: list[str | None] = url_keys(pa.array(urls, pa.string())).to_pylist()
    return found


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://a.example/x", "a.example/x"),
        ("https://a.example/x", "a.example/x"),  # 1
        ("HTTPS://A.Example./X", "a.example/X"),  # 2
        ("http://Me:Secret@A.example/", "Me:Secret@a.example/"),
        ("http://a.example:80/x", "a.example/x"),  # 3
        ("https://a.example:443/x", "a.example/x"),
        ("https://a.example:80/x", "a.example:80/x"),
        ("http://a.example:8080/x", "a.example:8080/x"),
        ("http://a.example:/x", "a.example/x"),
        ("http://[::1]:80/x", "[::1]/x"),
        ("http://a.example/x#part", "a.example/x"),  # 4
        ("http://a.example/x#?a=b", "a.example/x"),
        ("http://a.example", "a.example/"),  # 5
        ("http://a.example?b=c", "a.example/?b=c"),
        ("http://a.example/%7euser/%41%2d%5a", "a.example/~user/A-Z"),  # 6
        ("http://a.example/caf%c3%a9%20%2F", "a.example/caf%C3%A9%20%2F"),
        ("http://a.example/100%/%zz/%4", "a.example/100%/%zz/%4"),
        ("http://a.example/?q=%7E%e4", "a.example/?q=~%E4"),
        ("http://a.example/x?utm_source=a&w=3&fbclid=b&h=4&gclid", "a.example/x?w=3&h=4"),  # 7
        ("http://a.example/x?utm_source=a", "a.example/x"),
        ("http://a.example/x?", "a.example/x"),
        ("http://a.example/x?b=2&a=1", "a.example/x?b=2&a=1"),  # the order stays
        ("http://a.example/x?fbclidx=1&my_utm_a=2", "a.example/x?fbclidx=1&my_utm_a=2"),
        ("http://www.a.example/x/", "www.a.example/x/"),
        ("http://a.example/b/../c//d", "a.example/c//d"),  # what browsers request
        ("http://a.example/b/%2E%2e/./c/.", "a.example/c/"),
        ("http://bücher.example/ß?ü#ö", "xn--bcher-kva.example/%C3%9F?%C3%BC"),
        ("http://faß.example/", "xn--fa-hia.example/"),
        ("http://xn--fa-hia.example/", "xn--fa-hia.example/"),
        ("http://a。b．example｡/x", "a.b.example/x"),
        ("http://A.EXAMPLE../x", "a.example/x"),
        ("http://a.example%2e:00080/x", "a.example/x"),
        ("http://a.example:0008080/x", "a.example:8080/x"),
        ("http://a.example:0/x", "a.example:0/x"),
        ("\ufeff http://a.example/x\u00a0\r\n", "a.example/x"),
        ("http://a.exa\nmple/x\ty", "a.example/xy"),
        ("http://a.example\\x", "a.example/x"),
        ("http://0x7f.1/x", "127.0.0.1/x"),
        ("http://0177.0.0.1../x", "127.0.0.1/x"),
        ("http://2130706433/x", "127.0.0.1/x"),
        ("http://[0:0::FFFF:127.0.0.1]:80/x", "[::ffff:7f00:1]/x"),
        ("http://💩.example/x", "xn--ls8h.example/x"),
        ("http://a.example/{x}?{y}|z'", "a.example/%7Bx%7D?%7By%7D%7Cz%27"),
        ("http://a.example/%%34%31", "a.example/%%341"),  # decoding must not make an escape
        ("http://a.example/%4%31", "a.example/%4%31"),
        ("http://a.example/?%75tm_source=x", "a.example/"),
        ("http://256.1.1.1/x", "http://256.1.1.1/x"),  # not a host: as it is
        ("ftp://A.example/x#y", "ftp://A.example/x#y"),  # not http: as it is
        ("http:///x", "http:///x"),
        ("a.example/x", "a.example/x"),
        ("", ""),
    ],
)
def test_each_rule(url: str, key: str) -> None:
    assert url_key(url) == key and keys(url) == [key]


HOST = st.sampled_from(["a.example", "b-2.example.org", "xn--bcher-kva.example", "10.0.0.1", "bücher.example"])
PATH = st.lists(
    st.sampled_from(
        [
            "",
            "x",
            "Y.jpg",
            "%20",
            "%C3%A9",
            "é",
            "~",
            "-",
            "%2F",
            "%",
            "100%25",
            "@",
            ":",
            "x y",
            "..",
            ".",
            "%2e",
            "'",
            "{}",
        ]
    ),
    max_size=5,
).map("/".join)
QUERY = st.lists(st.sampled_from(["a=1", "b=%20", "c", "", "d==", "utm", "x?y", "é=/"]), max_size=3).map("&".join)


def plain(parts: tuple[str, str, str]) -> str:
    host, path, query = parts
    return f"http://{host}/{path}" + (f"?{query}" if query else "")


LINK = st.tuples(HOST, PATH, QUERY)


@given(LINK, st.data())
def test_what_the_rules_call_equal_has_one_key(parts: tuple[str, str, str], data: st.DataObject) -> None:
    host, path, query = parts
    pick = data.draw
    scheme = pick(st.sampled_from(["http", "HTTP", "https", "Https"]))
    port = pick(st.sampled_from(["", ":", ":80" if scheme.lower() == "http" else ":443"]))
    spelled = "".join(c.upper() if c.isascii() and pick(st.booleans()) else c for c in host)
    tracking = pick(st.lists(st.sampled_from(["utm_source=x", "utm_campaign", *(f"{t}=1" for t in sorted(TRACKING))])))
    parameters = query.split("&") if query else []
    for one in tracking:
        parameters.insert(pick(st.integers(0, len(parameters))), one)
    asked = "&".join(parameters)
    other = f"{scheme}://{spelled}{pick(st.sampled_from(['', '.']))}{port}/{path}"
    other += (f"?{asked}" if asked else "") + pick(st.sampled_from(["", "#", "#a?b#c"]))
    unreserved = [i for i, c in enumerate(other) if c in "-~" and i > other.index("/", 8)]
    for place in reversed(unreserved):
        code = f"%{ord(other[place]):02x}"
        other = other[:place] + pick(st.sampled_from([code, code.upper(), other[place]])) + other[place + 1 :]
    assert url_key(other) == url_key(plain(parts)) and keys(other) == keys(plain(parts))


@given(LINK, LINK)
def test_different_requests_keep_different_keys(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """One key means one host, port, path and query, but for escapes of what need not be escaped."""

    def asked(parts: tuple[str, str, str]) -> tuple[str, int, list[bytes]]:
        target = parse(plain(parts))
        assert target is not None
        path, _, query = target.path.partition("?")
        return target.host, target.port, [urllib.parse.unquote_to_bytes(part) for part in (path, query)]

    if url_key(plain(one)) == url_key(plain(other)):
        assert asked(one) == asked(other)


@given(LINK)
def test_a_key_with_a_scheme_is_its_own_key(parts: tuple[str, str, str]) -> None:
    key = url_key(plain(parts))
    assert url_key("http://" + key) == key


HARD = st.lists(
    st.sampled_from(
        ["http://", "https://", "a", "b.example", "xn--", "ß", "é", "。", "．", ".", "..", "0", "127", "0x7f", ":",
         ":080", ":443", "/", "%2e", "%2E", "%41", "%c3", "%", "%%34%31", "?", "#", "&", "utm_x=1", "'", "{", "|", "[",
         "]", "[::1]", "@", "u:p@", " ", "\t", "\n", "\\", "\u00ad", "\u200d", "\ufeff", "\u3000", "💩", "א", "1",
         "-", "_", "*"]
    ), max_size=14,
).map("".join)  # fmt: skip


@given(st.one_of(HARD, HARD.map("http://".__add__), st.text().map("http://".__add__), LINK.map(plain)))
def test_what_is_requested_is_its_own_canonical_form(url: str) -> None:
    """Canonical again is the same; the fetch requests it and nothing else; its key is the link's."""
    target = parse(url)
    try:
        asked = parse_url(url, range(65536))
    except Refused:
        asked = None
    assert asked in (None, target)
    if target is None:
        assert url_key(url) == url and keys_and_links(pa.array([url]))[1].tolist() == [False]
        return
    assert parse(target.url) == target and target.url.isascii() and not set(target.url) & set(" \t\r\n")
    if asked is not None:
        assert parse_url(asked.url, range(65536)) == asked and url_key(asked.url) == url_key(url)


@given(HOST, st.data())
def test_every_spelling_of_a_host_is_one_site(host: str, data: st.DataObject) -> None:
    pick = data.draw
    spelled = "".join(pick(st.sampled_from(_spellings(c))) for c in host) + pick(
        st.sampled_from(["", ".", "..", "。", "%2e"])
    )
    around = pick(st.sampled_from(["", " ", "\ufeff", "\u00a0", "\r\n", "\t", "\u3000", "\u200b"]))
    port = pick(st.sampled_from(["", ":", ":80", ":080", ":00000080"]))
    other = f"{around}http://{spelled}{port}/x{around}"
    assert parse(other) == parse(f"http://{host}/x") and url_key(other) == url_key(f"https://{host}/x")


def _spellings(character: str) -> list[str]:
    if character == ".":
        return [".", "。", "．", "｡", "%2E"]
    escaped = "".join(f"%{octet:02X}" for octet in character.encode())
    wide = chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character
    return [character, character.upper(), escaped, wide, f"\u00ad{character}"]


ANY = st.one_of(
    st.none(), HARD, st.text(max_size=30), LINK.map(plain), LINK.map(lambda p: plain(p).swapcase()),
    st.lists(
        st.sampled_from(
            ["http", "s", "://", "a.b", ".", ":80", ":443", "/", "?", "&", "#", "%", "%7e", "%2D", "%C3%a9", "utm_x=1",
             "gclid", "=", "A", "é", "\n", " ", "@", "[", "]"]
        ), max_size=12,
    ).map("".join),
)  # fmt: skip


@given(st.lists(ANY, max_size=20))
def test_the_short_cut_of_the_column_equals_the_rules(urls: list[str | None]) -> None:
    expected = [None if url is None else url_key(url) for url in urls]
    assert keys(*urls) == expected
    pieces = pa.chunked_array([urls[:3], urls[3:]], pa.string())
    assert url_keys(pieces).to_pylist() == expected
    assert url_keys(pa.array([None, *urls], pa.string()).slice(1)).to_pylist() == expected
