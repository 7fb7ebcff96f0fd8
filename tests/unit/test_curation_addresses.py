"""URLs are taken apart strictly, and only global unicast addresses are public, whatever Python's own opinion."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.rejects import Refused
from altdiffusion.curation.web import addresses
from altdiffusion.curation.web.addresses import (
    canonical_table,
    check,
    is_public,
    literal,
    parse_url,
    redirected,
)

PORTS = (80, 443, 8080)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://Example.COM", "http://example.com/"),
        ("HTTPS://example.com:443/a?b=c#d", "https://example.com/a?b=c"),
        ("http://example.com:8080/a b/ü.jpg?q=ä b", "http://example.com:8080/a%20b/%C3%BC.jpg?q=%C3%A4%20b"),
        ("http://example.com/%C3%BC%2F", "http://example.com/%C3%BC%2F"),
        ("  http://bücher.example/  ", "http://xn--bcher-kva.example/"),
        ("http://例え.テスト/画像.png", "http://xn--r8jz45g.xn--zckzah/%E7%94%BB%E5%83%8F.png"),
        ("http://example.com.", "http://example.com/"),
        ("http://[2606:4700::1111]/x", "http://[2606:4700::1111]/x"),
        ("http://a_b.example.com/", "http://a_b.example.com/"),
        ("\ufeff\u00a0http://faß.example../x\r\n\t", "http://xn--fa-hia.example/x"),
        ("http://a。example：0080/".replace("：", ":"), "http://a.example/"),
        ("http://a.example/b/../c/%2e/d?e", "http://a.example/c/d?e"),
    ],
)
def test_a_good_url_has_one_spelling(url: str, expected: str) -> None:
    assert parse_url(url, PORTS).url == expected


URLS = st.from_regex(
    r"(http|https|HTTP)://([a-z0-9A-Z_.-]{0,8}[.]){0,3}[a-z0-9x]{1,4}(:[0-9]{1,5})?(/[ -~]{0,8}){0,2}(\\?[ -~]{0,9})?",
    fullmatch=True,
)


@given(URLS)
def test_the_short_way_for_plain_urls_leads_to_the_same_end(url: str) -> None:
    def outcome() -> object:
        try:
            return parse_url(url, PORTS)
        except Refused as refused:
            return refused.reason

    found = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addresses, "_PLAIN", re.compile(r"(?!)"))
        assert outcome() == found


def test_the_short_way_is_taken() -> None:
    for url in ("http://a.example/", "https://x-1.cdn.example:8080/a/%20b.jpg?w=1&u=http://b[0]|x"):
        assert addresses._PLAIN.fullmatch(url)
    for url in ("http://a.0x7f/", "http://1.2.3.4/", "http://2130706433/", "http://a@b.example/", "http://A.example/"):
        assert not addresses._PLAIN.fullmatch(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "blocked_scheme"),
        ("example.com/a.jpg", "blocked_scheme"),
        ("//example.com/a.jpg", "blocked_scheme"),
        ("FILE:///etc/passwd", "blocked_scheme"),
        ("http:a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http://a\nb/", "bad_url"),
        ("http://a\x00b/", "bad_url"),
        ("http://a/\tb", "bad_url"),
        ("http://a\\b/", "bad_url"),
        ("http://me:pw@example.com/", "bad_url"),
        ("http://exa mple.com/", "bad_url"),
        ("http://-a.example/", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://" + "a" * 64 + ".example/", "bad_url"),
        ("http://" + "a." * 130 + "example/", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://example.com:x/", "bad_url"),
        ("http://example.com/" + "a" * 9000, "bad_url"),
        ("http://example.com:22/", "blocked_port"),
        ("http://example.com:0/", "blocked_port"),
    ],
)
def test_a_bad_url_has_a_reason(url: str, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_url(url, PORTS)
    assert caught.value.reason == reason


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for url in (text, "http://" + text, "http://example.com/" + text):
        try:
            target = parse_url(url, PORTS)
        except Refused:
            continue
        assert target.url.isascii() and not set("\r\n\t \\@") & set(target.authority + target.path.replace("@", ""))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.31.255.255", "192.0.0.8",
        "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.251",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1",
        "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:db8::1", "2002:a00:1::1", "3fff::1", "5f00::1",
        "fc00::1", "fd12::1", "fe80::1", "fec0::1", "ff02::1", "2606:4700::5efe:a00:1", "2606:4700::200:5efe:a00:1",
    ],
)  # fmt: skip
def test_what_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "192.0.1.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_what_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("8.8.2056", "8.8.8.8"),
        ("::1", "::1"),
        ("1e100.net", None),
        ("a.1b", None),
        ("1.2.3.4.5", None),
        ("999999999999", None),
    ],
)
def test_every_spelling_of_an_address_is_one(host: str, address: str | None) -> None:
    found = literal(host)
    assert (None if found is None else str(found)) == address


def test_an_exception_covers_its_network_only_and_mapped_addresses_like_plain_ones() -> None:
    allow = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    assert check("10.9.9.9", allow) == "10.9.9.9"
    assert check("::ffff:10.9.9.9", allow)
    assert check("fd00::1", allow) == "fd00::1"
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "fe80::1", "not an address"):
        with pytest.raises(Refused):
            check(address, allow)


def test_connect_to_takes_the_closest_entry() -> None:
    table = {"a:80": "x:1", "a:": "x:2", ":80": "x:3", ":": "x:4", "b:80": ":5"}
    assert redirected(table, "a", 80) == ("x", 1)
    assert redirected(table, "a", 443) == ("x", 2)
    assert redirected(table, "b", 80) == ("b", 5)
    assert redirected(table, "c", 80) == ("x", 3)
    assert redirected(table, "c", 443) == ("x", 4)
    assert redirected({}, "c", 443) == ("c", 443)
    assert redirected({"a:80": "[::1]:8000"}, "a", 80) == ("::1", 8000)
    spelled = canonical_table({"Bücher.example.:80": "x:1", ":443": "x:2", "[0::1]:80": "x:3", ":": "x:4"})
    assert spelled == {"xn--bcher-kva.example:80": "x:1", ":443": "x:2", "::1:80": "x:3", ":": "x:4"}
