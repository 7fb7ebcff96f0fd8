"""The guarded fetch against a real server on loopback: how the other side misbehaves, and where it may not lead."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import DNS, Refused
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.errors import AltDiffusionError
from tests.fetch_server import Site, canary, certificate, reply, serving

HOST = "pictures.test"
LOOPBACK = ("127.0.0.0/8",)


def zipped(data: bytes) -> bytes:
    """Return gzip bytes without the time, which ids of tests would hold otherwise."""
    return gzip.compress(data, mtime=0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def fetcher(site: Site, **settings: Any) -> Fetcher:
    """Return a fetcher for which HOST is the server of the test, and nothing else is reachable by name."""
    given = {
        "deadline_s": 20.0,
        "allow_private": LOOPBACK,
        "connect_to": {f"{HOST}:80": f"127.0.0.1:{site.port}"},
    }
    return Fetcher(DownloadConfig(**{**given, **settings}), no_names)


def no_names(host: str, port: int, timeout_s: float) -> Sequence[str]:
    raise Refused(DNS, host)


def reason(fetch: Fetcher, path: str) -> str:
    return refusal(fetch, path if "://" in path else f"http://{HOST}{path}")


def test_a_body_arrives_whole_and_the_user_agent_is_sent(site: Site) -> None:
    body = os.urandom(300_000)
    site.answers["/a%20b?q=1"] = reply(body)
    found = fetcher(site, user_agent="Tester/1 (mail@example.org)").fetch(f"http://{HOST}/a b?q=1#fragment")
    assert found.body == body
    head = site.requests[0].decode()
    assert head.startswith("GET /a%20b?q=1 HTTP/1.1\r\n")
    assert f"Host: {HOST}\r\n" in head and "User-Agent: Tester/1 (mail@example.org)\r\n" in head
    assert "Accept-Encoding: identity" in head and "Cookie" not in head and "Authorization" not in head


def test_a_chunked_body_and_one_ended_by_the_close_arrive_whole(site: Site) -> None:
    site.answers["/chunked"] = reply(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", length=None, Transfer_Encoding="chunked")
    site.answers["/close"] = reply(b"abcde", length=None)
    fetch = fetcher(site)
    assert fetch.fetch(f"http://{HOST}/chunked").body == b"abcde"
    assert fetch.fetch(f"http://{HOST}/close").body == b"abcde"


PNG = b"\x89PNG\r\n\x1a\nxyz"
RAW = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    "answer",
    [
        reply(PNG, status="201 Created"),
        reply(PNG, status="203 Non-Authoritative"),
        reply(PNG, status="206 Partial", Content_Range=f"bytes 0-{len(PNG) - 1}/{len(PNG)}"),
        reply(PNG, Content_length=str(len(PNG))),  # twice the same
        reply(PNG, length=None, Content_Length=f"{len(PNG)}, {len(PNG)}"),
        *(
            reply(PNG, Content_Encoding=name)
            for name in ("UTF-8", "none", "aws-chunked", "binary", "gzip", "br", "image/png", "", "x, y, z, a, b")
        ),
        reply(zipped(PNG), Content_Encoding="GZIP"),
        reply(zipped(PNG[:5]) + zipped(PNG[5:]), Content_Encoding="x-gzip"),
        reply(zipped(zipped(PNG)), Content_Encoding="gzip, identity, gzip"),
        reply(zipped(PNG) + b"padding", Content_Encoding="gzip"),
        reply(zlib.compress(PNG), Content_Encoding="deflate"),
        reply(RAW.compress(PNG) + RAW.flush(), Content_Encoding="deflate"),
        reply(b"%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(PNG), PNG), length=None, Transfer_Encoding="Chunked"),
        reply(PNG, length=None, Transfer_Encoding="identity"),
        reply(
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG),
            length=None,
            Transfer_Encoding="chunked",
            transfer_encoding="chunked",
        ),
        reply(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG), length=3, Transfer_Encoding="chunked"),  # RFC 9112, 6.3
        reply(PNG).replace(b"\r\n", b"\n", 3).replace(b"\x89PNG\n", b"\x89PNG\r\n"),
        reply(PNG).replace(b"Content-Length:", b"Folded: a\r\n b\r\nno field\r\nContent-Length :"),
        reply(status="100 Continue", length=None) + reply(status="103 Early Hints", length=None, Link="x") + reply(PNG),
    ],
)
def test_an_answer_that_departs_from_the_rules_but_holds_the_whole_is_taken(site: Site, answer: bytes) -> None:
    site.answers["/"] = answer
    assert fetcher(site).fetch(f"http://{HOST}/").body == PNG


def test_noindex_is_a_signal_where_the_config_enables_it(site: Site) -> None:
    site.answers["/"] = reply(PNG, X_Robots_Tag="noindex, nofollow")
    assert fetcher(site).fetch(f"http://{HOST}/").body == PNG
    assert reason(fetcher(site, honor_noindex=True), "/") == "opt_out:x-robots-tag"


def test_what_is_requested_is_the_canonical_link(site: Site) -> None:
    """Request line and Host come from the one form that lists and duplicates are compared in."""
    site.answers["/b/%C3%BC%20'?q=%27{x}"] = site.answers["/moved/here"] = reply(PNG)
    site.answers["/r"] = reply(status="301 Moved", Location="\t ./moved/../moved/h%65re").replace(b"%65", b"e")
    fetch = fetcher(site, connect_to={":": f"127.0.0.1:{site.port}"})
    for url in (
        "\ufeff HTTP://Pictures。TEST..:080/a/../b/ü '?q='{x}#f\u3000",
        f"http://{HOST}/./b/%2E/%C3%BC%20'?q='{{x}}",
    ):
        found = fetch.fetch(url)
        assert found.body == PNG and found.url == f"http://{HOST}/b/%C3%BC%20'?q=%27{{x}}"
    assert fetch.fetch(f"http://{HOST}/r").url == f"http://{HOST}/moved/here"
    assert {_head(head) for head in site.requests[:2]} == {(b"GET /b/%C3%BC%20'?q=%27{x} HTTP/1.1", HOST.encode())}


def _head(head: bytes) -> tuple[bytes, bytes]:
    return head.partition(b"\r\n")[0], head.partition(b"\r\nHost: ")[2].partition(b"\r\n")[0]


def test_a_proxy_in_the_environment_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with canary() as (port, seen):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        site.answers["/"] = reply(b"x")
        assert fetcher(site).fetch(f"http://{HOST}/").body == b"x"
        assert not seen


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "500 Oops", "204 No Content", "206 Partial"])
def test_a_status_is_its_own_reason(site: Site, status: str) -> None:
    site.answers["/"] = reply(b"x", status=status)
    assert reason(fetcher(site), "/") == f"http_{status[:3]}"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(b"x" * 10, length=20), "truncated"),
        (reply(b"5\r\nabc", length=None, Transfer_Encoding="chunked"), "truncated"),
        (reply(b"x" * 5000, length=5 << 30), "too_large"),
        (reply(b"x" * 5000), "too_large"),
        (reply(b"x" * 5000, length=None), "too_large"),
        (reply(zipped(b"0" * 10_000_000)[:900], Content_Encoding="gzip"), "too_large"),
        (reply(zipped(b"0" * 500)[:-9], Content_Encoding="gzip"), "truncated"),
        (reply(b"plain", Content_Encoding="gzip"), "content_encoding"),
        (reply(b"plain", Content_Encoding="UTF-8"), "content_encoding"),
        (reply(PNG, Content_Encoding="gzip", status="206 Part", Content_Range="bytes 1-8/9"), "http_206"),
        (reply(PNG, status="206 Part", Content_Range=f"bytes 0-{len(PNG) - 1}/{len(PNG) + 5}"), "http_206"),
        (reply(PNG, status="206 Part", Content_Range="bytes 0-99/100"), "http_206"),
        (reply(PNG, status="206 Part", Content_Range="bytes 0-3/*"), "http_206"),
        (reply(PNG, status="202 Later"), "http_202"),
        (reply(zipped(b"0" * 900_000), Content_Encoding="gzip, br"), "content_encoding"),
        (reply(b"xx", length=2, Content_length="3"), "bad_response"),
        (reply(b"xx", length=None, Content_Length="2, 3"), "bad_response"),
        *((reply(b"xx", length=None, Content_Length=wrong), "bad_response")
          for wrong in ("-2", "+2", "2.0", "0x2", "2 2", "", "9" * 5000, "\u00b2")),
        (reply(b"xx", length=None, Content_Length="9" * 18), "too_large"),
        *((reply(b"%s\r\nab\r\n0\r\n\r\n" % wrong, length=None, Transfer_Encoding="chunked"), "bad_response")
          for wrong in (b"+2", b"-2", b"0x2", b"2_0", b" 2", b"", b"g", b"2;" + b"e" * 500, b"f" * 17, b"1")),
        (reply(b"2\nab\n0\n\n", length=None, Transfer_Encoding="chunked"), "bad_response"),
        (reply(b"ff" * 4 + b"\r\nab\r\n", length=None, Transfer_Encoding="chunked"), "truncated"),
        (reply(b"3e9\r\n" + b"x" * 1001, length=None, Transfer_Encoding="chunked"), "too_large"),
        (reply(b"2\r\nab\r\n0\r\n" + b"A: b\r\n" * 200, length=None, Transfer_Encoding="chunked"), "bad_response"),
        (reply(b"ab", Transfer_Encoding="gzip, chunked"), "bad_response"),
        (reply(b"ab", Transfer_Encoding="xchunked"), "bad_response"),
        (reply(status="101 Switching Protocols"), "http_101"),
        (reply(status="103 Early Hints", length=None) * 200, "bad_response"),
        (reply(status="103 Early Hints", length=None, Link="x" * 30_000) * 3, "bad_response"),
        (reply(status="103 Early Hints", length=None), "reset"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
        (b"HELLO\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", "bad_response"),
        (b"", "reset"),
        (reply(status="302 Found"), "http_302"),
        (reply(status="302 Found", Location="file:///etc/passwd"), "blocked_scheme"),
        (reply(status="302 Found", Location="http://user:secret@pictures.test/"), "bad_url"),
        (reply(status="302 Found", Location="http://[::"), "bad_url"),
        (reply(status="302 Found", Location="http://pictures.test:22/"), "blocked_port"),
        (reply(status="301 Moved", Location="http://other.test/"), "dns"),
        (reply(b"x", X_Robots_Tag="noindex, noai"), "opt_out:x-robots-tag"),
        (reply(b"x", tdm_reservation="1"), "opt_out:tdm-reservation"),
        (reply(b"x", Content_Usage="search=y, train-ai=n"), "opt_out:content-usage"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_taken(site: Site, answer: bytes, expected: str) -> None:
    site.answers["/"] = answer
    assert reason(fetcher(site, max_bytes=1000), "/") == expected


def test_an_endless_body_ends_at_the_cap_and_memory_stays_flat(site: Site) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(reply(length=None))
        piece = b"\0" * (1 << 20)
        while True:
            connection.sendall(piece)

    site.answers["/"] = flood
    fetch = fetcher(site, max_bytes=4 << 20, deadline_s=20.0)
    tracemalloc.start()
    try:
        assert reason(fetch, "/") == "too_large"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("where", ["body", "head", "silence", "informational"])
def test_a_slow_sender_costs_the_deadline_and_no_more(site: Site, where: str) -> None:
    left = threading.Event()

    def drip(connection: socket.socket) -> None:
        if where == "body":
            connection.sendall(reply(length=1000))
        while where != "silence":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" if where == "informational" else b"H")
            time.sleep(0.05)
        left.wait(60)

    site.answers["/"] = drip
    start = time.monotonic()
    assert reason(fetcher(site, deadline_s=0.6), "/") == "timeout"
    assert 0.5 < time.monotonic() - start < 30
    left.set()


def test_the_deadline_holds_over_redirects_together(site: Site) -> None:
    def late(connection: socket.socket) -> None:
        time.sleep(0.3)
        connection.sendall(reply(status="302 Found", Location="/"))

    site.answers["/"] = late
    start = time.monotonic()
    assert reason(fetcher(site, deadline_s=0.8, max_redirects=200), "/") == "timeout"
    assert time.monotonic() - start < 30


def test_a_name_server_that_hangs_costs_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    start = time.monotonic()
    assert reason(Fetcher(DownloadConfig(deadline_s=0.5)), "http://slow.test/") == "timeout"
    assert time.monotonic() - start < 30
    released.set()


def test_a_gzip_file_of_very_many_members_takes_time_by_its_size_alone(site: Site) -> None:
    members = zipped(b"") * 40_000 + zipped(PNG)  # 800 kB; examining the rest for each member would take a minute
    site.answers["/"] = reply(members, Content_Encoding="gzip")
    start = time.process_time()
    assert fetcher(site).fetch(f"http://{HOST}/").body == PNG
    assert time.process_time() - start < 5
    broken = zipped(PNG) + zipped(os.urandom(100_000))[:-50_000] + b"x" * 50_000
    site.answers["/"] = reply(broken, Content_Encoding="gzip")
    assert fetcher(site).fetch(f"http://{HOST}/").body == PNG  # nothing of the broken member
    site.answers["/"] = reply(zipped(os.urandom(100_000))[:-50_000] + b"x" * 50_000, Content_Encoding="gzip")
    assert reason(fetcher(site), "/") == "content_encoding"


def test_redirects_are_followed_to_the_limit(site: Site) -> None:
    for hop in range(6):
        site.answers[f"/{hop}"] = reply(status="301 Moved", Location=f"/{hop + 1}")
    site.answers["/6"] = reply(b"here")
    site.answers["/loop"] = reply(status="307 Again", Location="/loop")
    fetch = fetcher(site)
    assert fetch.fetch(f"http://{HOST}/1").body == b"here"
    assert reason(fetch, "/0") == "too_many_redirects"
    assert reason(fetch, "/loop") == "too_many_redirects"
    assert fetcher(site, max_redirects=6).fetch(f"http://{HOST}/0").body == b"here"


def test_a_refused_connection_and_a_reset_are_distinguished(site: Site) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    assert reason(fetcher(site, connect_to={f"{HOST}:80": f"127.0.0.1:{port}"}), "/") == "connect"


HOSTILE = [
    "http://127.0.0.1{port}/", "http://localhost{port}/", "http://127.1{port}/", "http://2130706433{port}/",
    "http://0x7f000001{port}/", "http://0177.0.0.1{port}/", "http://0{port}/", "http://0.0.0.0{port}/",
    "http://[::1]{port}/", "http://[::]{port}/", "http://[::ffff:127.0.0.1]{port}/", "http://[::127.0.0.1]{port}/",
    "http://[64:ff9b::7f00:1]{port}/", "http://[2002:7f00:1::]{port}/", "http://[2001:0:7f00:1::1]{port}/",
    "http://[fe80::1%25lo]{port}/", "http://[fec0::1]{port}/", "http://[fd00::1]{port}/", "http://[ff02::1]{port}/",
    "http://[fe80::5efe:7f00:1]{port}/", "http://10.0.0.1{port}/", "http://172.16.0.1{port}/",
    "http://192.168.1.1{port}/", "http://169.254.169.254{port}/latest/meta-data/", "http://100.64.0.1{port}/",
    "http://192.0.0.8{port}/", "http://198.18.0.1{port}/", "http://224.0.0.1{port}/", "http://255.255.255.255{port}/",
    "http://240.0.0.1{port}/", "http://192.88.99.1{port}/", "http://rebind.test{port}/", "http://mixed.test{port}/",
    "http://mapped.test{port}/", "http://127.0.0.1.{port}/", "http://user@127.0.0.1{port}/",
    "http://public.test@127.0.0.1{port}/", "http://127.0.0.1{port}\\@public.test/", "http://public.test\r\nHost: x/",
    "file:///etc/passwd", "/proc/self/environ", "ftp://127.0.0.1{port}/", "gopher://127.0.0.1{port}/",
    "jar:http://127.0.0.1{port}/!/", "data:image/png;base64,AAAA", "dict://127.0.0.1{port}/", "http:///etc/passwd",
    "http://①②⑦.⓪.⓪.①{port}/", "http://ⓛocalhost{port}/", "http://" + "a" * 300 + ".test{port}/", "http://[::1{port}/",
]  # fmt: skip
NAMES = {
    "rebind.test": ["127.0.0.1"],
    "mixed.test": ["8.8.8.8", "127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "localhost": ["127.0.0.1", "::1"],
}


def test_hostile_urls_make_no_connection_directly_or_by_redirect() -> None:
    def resolve(host: str, port: int, timeout_s: float) -> Sequence[str]:
        if host not in NAMES:
            raise Refused(DNS, host)
        return NAMES[host]

    with serving(address="127.0.0.77") as site, canary() as (port, seen):
        fetch = Fetcher(
            DownloadConfig(
                deadline_s=20.0,
                ports=(80, 443, port),
                connect_to={f"{HOST}:80": f"127.0.0.77:{site.port}"},
                allow_private=("127.0.0.77/32",),  # the canary is on 127.0.0.1, which is not excepted
            ),
            resolve,
        )
        urls = [template.replace("{port}", f":{port}") for template in HOSTILE]
        direct = [reason(fetch, url) if "://" in url else refusal(fetch, url) for url in urls]
        assert set(direct) == {"bad_url", "blocked_scheme", "blocked_address"}, list(zip(direct, urls, strict=True))
        assert direct.count("blocked_address") == 37
        for url, expected in zip(urls, direct, strict=True):
            if "\r" in url or "://" not in url or ":///e" in url:
                continue  # not one header line, or relative to the test's host
            site.answers["/"] = reply(status="302 Found").replace(
                b"\r\n\r\n", b"\r\nLocation: %s\r\n\r\n" % url.encode()
            )
            assert reason(fetch, "/") == expected, url
        assert not seen, f"the canary was reached from {seen}"


def refusal(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Refused) as caught:
        fetch.fetch(url)
    return caught.value.reason


def test_a_name_is_resolved_once_a_hop_and_that_answer_is_connected_to() -> None:
    """A rebinding name: the first answer may be reached; the canary sits at every later one, same port."""
    answers = [["127.0.0.77"]]

    def rebinding(host: str, port: int, timeout_s: float) -> Sequence[str]:
        return answers.pop() if answers else ["127.0.0.1"]

    with canary() as (port, seen), serving(address="127.0.0.77", port=port) as site:
        site.answers["/"] = reply(b"checked")
        fetch = Fetcher(DownloadConfig(deadline_s=20.0, ports=(port,), allow_private=("127.0.0.77/32",)), rebinding)
        assert fetch.fetch(f"http://rebind.test:{port}/").body == b"checked"
        assert reason(fetch, f"http://rebind.test:{port}/") == "blocked_address"
        assert not seen


def test_loopback_is_reached_only_where_the_config_allows_it(site: Site) -> None:
    site.answers["/"] = reply(b"x")
    assert reason(fetcher(site, allow_private=()), "/") == "blocked_address"
    assert not site.requests
    assert reason(fetcher(site, allow_private=("10.0.0.0/8", "::1/128")), "/") == "blocked_address"
    assert fetcher(site).fetch(f"http://{HOST}/").body == b"x"


def test_an_exception_is_for_addresses_written_in_a_url_as_for_names(site: Site) -> None:
    """The author of a link can also make a name that leads there: refusing the address alone would protect nothing."""
    site.answers["/"] = reply(b"x")
    for host in ("127.0.0.1", "127.1", "0x7f000001"):
        fetch = fetcher(site, ports=(80, site.port), allow_private=("127.0.0.1/32",))
        assert fetch.fetch(f"http://{host}:{site.port}/").body == b"x"
    count = len(site.requests)
    fetch = fetcher(site, ports=(80, site.port), allow_private=("127.0.0.2/32", "10.0.0.0/8"))
    for host in ("127.0.0.1", "127.1", "0x7f000001", "[::ffff:127.0.0.1]"):
        assert reason(fetch, f"http://{host}:{site.port}/") == "blocked_address"
    assert len(site.requests) == count


def test_tls_is_verified_with_one_context(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, HOST)
    with serving(context) as site:
        site.answers["/"] = reply(b"secret")
        connect_to = {"secure.test:443": f"127.0.0.1:{site.port}", f"{HOST}:443": f"127.0.0.1:{site.port}"}
        trusting = fetcher(site, connect_to=connect_to, ca_file=str(pem))
        assert trusting.fetch(f"https://{HOST}/").body == b"secret"
        assert reason(trusting, "https://secure.test/") == "tls"  # the certificate is for another name
        assert reason(fetcher(site, connect_to=connect_to), f"https://{HOST}/") == "tls"  # the signer is not trusted
        assert not site.asked("secure.test")


def test_a_certificate_that_has_expired_is_a_tls_problem(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, HOST, days=-1)
    with serving(context) as site:
        site.answers["/"] = reply(b"secret")
        fetch = fetcher(site, connect_to={f"{HOST}:443": f"127.0.0.1:{site.port}"}, ca_file=str(pem))
        assert reason(fetch, f"https://{HOST}/") == "tls"
        assert not site.requests


def test_a_redirect_from_https_is_checked_like_any_other(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, HOST)
    with serving(context, address="127.0.0.77") as site, canary() as (port, seen):
        settings = {
            "connect_to": {f"{HOST}:443": f"127.0.0.77:{site.port}"},
            "allow_private": ("127.0.0.77/32",),
            "ca_file": str(pem),
            "ports": (443, port),
        }
        for location in (f"http://127.0.0.1:{port}/", f"https://[::1]:{port}/", f"//127.0.0.1:{port}/"):
            site.answers["/"] = reply(status="302 Found", Location=location)
            assert reason(fetcher(site, **settings), f"https://{HOST}/") == "blocked_address"
        assert not seen


def test_a_server_that_does_not_speak_tls_is_a_tls_problem(site: Site) -> None:
    fetch = fetcher(site, connect_to={f"{HOST}:443": f"127.0.0.1:{site.port}"}, deadline_s=1.0)
    assert reason(fetch, f"https://{HOST}/") in ("tls", "timeout", "connect")


def test_an_unreadable_ca_file_is_an_error_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match=r"ca_file .*missing\.pem"):
        Fetcher(DownloadConfig(ca_file=str(tmp_path / "missing.pem")))
