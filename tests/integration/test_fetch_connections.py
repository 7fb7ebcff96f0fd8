"""Connections used again: only to where they were checked to lead, and never with what was left on them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.network.addresses import Refused
from altdiffusion.curation.network.fetch import Fetcher
from tests.fetch_server import Site, canary, certificate, reply, serving

A = "http://a.test"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(keep=True) as running:
        running.answers["/x"] = reply(b"x")
        yield running


def fetcher(site: Site, **given: Any) -> Fetcher:
    usual = {
        "deadline_s": 20.0,
        "connect_to": {":80": f"127.0.0.1:{site.port}", ":443": f"127.0.0.1:{site.port}"},
        "allow_private": ("127.0.0.0/8",),
    }
    return Fetcher(DownloadConfig(**{**usual, **given}))


def reason(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Refused) as caught:
        fetch.fetch(url)
    return caught.value.reason


def test_one_host_takes_one_connection_and_another_its_own(site: Site) -> None:
    site.answers["/moved"] = reply(status="302 Found", Location="/x")
    fetch = fetcher(site)
    for _ in range(10):
        assert fetch.fetch(f"{A}/x").body == b"x"
    assert fetch.fetch(f"{A}/moved").body == b"x"
    assert reason(fetch, f"{A}/none") == "http_404"
    assert fetch.fetch(f"{A}/x").body == b"x"
    assert site.connections == 1
    assert fetch.fetch("http://b.test/x").body == b"x"
    assert site.connections == 2
    fetch.close()
    assert fetch.fetch(f"{A}/x").body == b"x"
    assert site.connections == 3


def test_tls_too_and_never_across_schemes(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, "a.test")
    with serving(context, keep=True) as secure:
        secure.answers["/x"] = reply(b"secure")
        fetch = fetcher(secure, ca_file=str(pem))
        for _ in range(5):
            assert fetch.fetch("https://a.test/x").body == b"secure"
        assert secure.connections == 1
        assert reason(fetch, "http://a.test/x") in ("reset", "bad_response", "timeout")
        assert secure.connections == 2


def test_a_name_that_now_leads_inside_is_not_followed_by_a_kept_connection(site: Site) -> None:
    """The kept connection still leads to the checked address; a new one would be checked anew."""
    answers = [["127.0.0.77"]]

    def rebinding(host: str, port: int, timeout_s: float) -> Sequence[str]:
        return answers.pop() if answers else ["127.0.0.1"]

    with canary() as (port, seen), serving(address="127.0.0.77", port=port, keep=True) as outside:
        outside.answers["/x"] = reply(b"checked")
        fetch = Fetcher(DownloadConfig(deadline_s=20.0, ports=(port,), allow_private=("127.0.0.77/32",)), rebinding)
        for _ in range(3):
            assert fetch.fetch(f"http://rebind.test:{port}/x").body == b"checked"
        fetch.close()
        assert reason(fetch, f"http://rebind.test:{port}/x") == "blocked_address"
        assert not seen


def test_a_connection_that_was_closed_meanwhile_costs_nothing(site: Site) -> None:
    closing = threading.Event()

    def then_close(connection: socket.socket) -> None:
        connection.sendall(reply(b"first"))
        if not closing.is_set():
            connection.shutdown(socket.SHUT_RDWR)
            closing.set()

    site.answers["/close"] = then_close
    fetch = fetcher(site)
    assert fetch.fetch(f"{A}/close").body == b"first"
    assert closing.wait(30)
    time.sleep(0.05)
    assert fetch.fetch(f"{A}/x").body == b"x" and site.connections == 2


def test_a_connection_that_closes_on_the_second_request_is_made_anew(site: Site) -> None:
    """The server takes the request and closes without a word: it may have timed out at that moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply(b"once"))
                    connection.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        fetch = fetcher(site, connect_to={":80": f"127.0.0.1:{listener.getsockname()[1]}"})
        assert fetch.fetch(f"{A}/1").body == b"once"
        assert fetch.fetch(f"{A}/2").body == b"once"


@pytest.mark.parametrize("late", [False, True])
def test_bytes_nobody_asked_for_are_not_the_next_answer(site: Site, late: bool) -> None:
    """A second answer behind the first would be taken for that of another link of the host."""

    sent = threading.Event()

    def smuggle(connection: socket.socket) -> None:
        if late:
            connection.sendall(reply(b"first"))
            time.sleep(0.05)
            connection.sendall(reply(b"smuggled"))
        else:
            connection.sendall(reply(b"first") + reply(b"smuggled"))
        sent.set()

    site.answers["/first"] = smuggle
    fetch = fetcher(site)
    assert fetch.fetch(f"{A}/first").body == b"first"
    assert sent.wait(30)
    assert fetch.fetch(f"{A}/x").body == b"x"
    assert site.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x", Connection="close"),
        reply(b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
        reply(b"x" * 5000, length=1 << 20, status="404 Not Found"),  # a long refusal is not read to its end
    ],
)
def test_what_is_not_read_to_its_end_is_not_used_again(site: Site, answer: bytes) -> None:
    site.answers["/once"] = answer
    fetch = fetcher(site)
    for _ in range(2):
        try:
            fetch.fetch(f"{A}/once")
        except Refused as refused:
            assert refused.reason == "http_404"
    assert site.connections == 2


def test_a_chunked_answer_can_be_followed_by_another(site: Site) -> None:
    site.answers["/chunked"] = reply(b"3\r\nabc\r\n0\r\n\r\n", length=None, Transfer_Encoding="chunked")
    fetch = fetcher(site)
    assert [fetch.fetch(f"{A}/chunked").body, fetch.fetch(f"{A}/x").body] == [b"abc", b"x"]
    assert site.connections == 1


def test_the_deadline_of_one_request_is_not_the_next_ones(site: Site) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(1.5)
        connection.sendall(reply(b"slow"))

    site.answers["/slow"] = slow
    fetch = fetcher(site, deadline_s=4.0)
    for _ in range(3):  # 4.5 s in all
        assert fetch.fetch(f"{A}/slow").body == b"slow"
    assert site.connections == 1


def test_no_more_are_kept_than_there_is_use_for(site: Site) -> None:
    fetch = fetcher(site, threads=2)
    for number in range(20):
        fetch.fetch(f"http://h{number}.test/x")
    assert len(fetch._idle._idle) == 8
    assert fetch.fetch("http://h19.test/x").body == b"x" and site.connections == 20
    assert fetch.fetch("http://h0.test/x").body == b"x" and site.connections == 21
