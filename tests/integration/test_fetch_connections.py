"""Connections used again: only to where they were checked to lead, and never with what was left on them."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import Refused
from altdiffusion.curation.web.answers import Answer as HttpAnswer
from altdiffusion.curation.web.event_loop import run
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.curation.web.schedule import Paces, Schedule
from tests.fetch_server import Answer, Site, canary, certificate, reply, serving

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
    """The kept connection still leads to the checked address; a new one would be checked again."""
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


def test_a_connection_that_closes_on_the_second_request_is_made_again(site: Site) -> None:
    """The server takes the request and closes without an answer: it may have timed out at that moment."""
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
def test_unrequested_bytes_are_not_the_next_answer(site: Site, late: bool) -> None:
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


def test_what_an_answer_left_and_came_late_is_not_the_next_rows_fault(site: Site) -> None:
    """The length was stated too short; the rest comes when the next request has been sent."""

    def late(connection: socket.socket) -> None:
        connection.sendall(reply(b"a ", length=2))
        connection.recv(65536)
        connection.sendall(b"picture\r\n" * 3)
        connection.shutdown(socket.SHUT_RDWR)

    site.answers["/late"] = late
    fetch = fetcher(site)
    assert fetch.fetch(f"{A}/late").body == b"a "
    assert fetch.fetch(f"{A}/x").body == b"x"
    assert site.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x", Connection="close"),
        reply(b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
        reply(b"x" * 5000, length=1 << 20, status="404 Not Found"),  # a long refusal is not read to its end
        reply(b"1\r\nx\r\n0\r\n\r\n", Transfer_Encoding="chunked"),  # two lengths: another reader may see another end
        reply(b"1\r\nx\r\n0\r\n\n", length=None, Transfer_Encoding="chunked"),
        reply(b"x", Transfer_Encoding="identity"),
        reply(b"x").replace(b"\r\n", b"\n", 1),
        reply(b"x").replace(b"\r\n\r\n", b"\n\n", 1),
        reply(b"x").replace(b"Length:", b"Length :"),
        reply(b"x", Folded="a\r\n b"),
        reply(b"x", Nul="a\0b"),
        reply(b"x", Connection="keep-alive, Close"),
        reply(b"x", status="204 No Content"),
        reply(status="304 Not Modified", Transfer_Encoding="chunked"),
    ],
)
def test_what_is_not_read_to_its_end_is_not_used_again(site: Site, answer: bytes) -> None:
    site.answers["/once"] = answer
    fetch = fetcher(site)
    for _ in range(2):
        try:
            fetch.fetch(f"{A}/once")
        except Refused as refused:
            assert refused.reason in ("http_404", "http_204", "http_304")
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


class Wire:
    """What comes on a connection that needs no waiting."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def held_line(self, limit: int) -> bytes:
        return self._data.readline(limit)

    async def readline(self, limit: int) -> bytes:
        return self._data.readline(limit)

    async def read(self, count: int) -> bytes:
        return self._data.read(count)


def test_a_body_of_which_a_part_was_read_is_not_read_over_again() -> None:
    """What has come behind it is as long as the body, but is not the body."""
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789" + b"x" * 90

    async def answered() -> HttpAnswer:
        answer = HttpAnswer(Wire(wire))
        await answer.read_head()
        return answer

    answer = run(answered())
    assert run(answer.read(3, cut=True)) == b"123"
    run(answer.skip(95))
    assert not answer.is_read
    answer = run(answered())
    run(answer.skip(8))
    assert not answer.is_read
    run(answer.skip(9))
    assert answer.is_read


def test_early_hints_are_not_the_answer(site: Site) -> None:
    """The final answer comes 150 ms behind the interim one, on a kept connection: it is not the next row's."""

    def hinting(body: bytes) -> Answer:
        def answer(connection: socket.socket) -> None:
            connection.sendall(reply(status="103 Early Hints", length=None, Link="</style.css>; rel=preload"))
            time.sleep(0.15)
            connection.sendall(reply(body))

        return answer

    site.answers["/1"], site.answers["/2"] = hinting(b"one"), hinting(b"two")
    fetch = fetcher(site)
    assert [fetch.fetch(f"{A}/{name}").body for name in (1, 2, "x", 1)] == [b"one", b"two", b"x", b"one"]
    assert site.connections == 1


# Any sequence of answers in any split. "@" is the row that was asked for.

SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsmuggled!"
GOOD = (
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"@-picture"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\n@-pi\r\n5\r\n", b"cture\r\n0\r\nT: r\r\n\r\n"),
    (b"HTTP/1.1 203 So\r\nContent-Length: 9\r\nContent-Length: 9\r\n\r\n", b"@-picture"),
    (b"HTTP/1.1 302 Found\r\nLocation: /@/again\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED), SMUGGLED),
    (b"HTTP/1.1 404 None\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED), SMUGGLED),
    (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(SMUGGLED), SMUGGLED + b"\r\n0\r\n\r\n"),
    (b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", b""),
    (b"HTTP/1.1 204 None\r\n\r\n", b""),
)
BAD = (
    (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", b"@-picture"),  # short, then the end
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"@-picture"),  # long
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n9\r\n", b"@-picture\r\n0\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\n@-picture\r\n0\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"-9\r\n@-picture\r\n0\r\n\r\n"),
    (b"HTTP/1.1 204 None\r\nContent-Length: 9\r\n\r\n", b"@-picture"),
    (b"HTTP/1.1 101 Other\r\nUpgrade: x\r\n\r\n", b""),
    (b"HTTP/1.0 200 OK\r\n\r\n", b"@-picture"),
    (b"HTTP/1.1 200 OK\nContent-Length: 9\n\n", b"@-picture"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 9\r\n\r\n", b"@-picture"),
    (b"", b"@-picture"),
)
INTERIM = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n")


@dataclass(frozen=True)
class Script:
    """The answer of the server to one request, and whether it then closes; by the rules (`good`), with an image."""

    pieces: tuple[bytes, ...]
    closes: bool
    good: bool
    comes: bool


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    good = draw(st.booleans())
    head, body = draw(st.sampled_from(GOOD if good else BAD))
    wire = b"".join(draw(st.lists(st.sampled_from(INTERIM), max_size=3))) + head + body
    cuts = sorted(draw(st.lists(st.integers(1, len(wire)), max_size=4)))
    pieces = [wire[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(wire)])]
    extra = b"" if good else draw(st.sampled_from([b"", b"", SMUGGLED, b"\r\n"]))
    waits = b"Length: 20" in head or b"HTTP/1.0" in head  # for more than comes
    closes = not good and (extra == b"" or waits or draw(st.booleans()))
    comes = b"picture" in head + body or b"cture" in body or b"302" in head
    return Script((*pieces[:-1], pieces[-1] + extra), closes, good, good and comes)


class Scripted:
    """A server whose answer to `/<row>` is the row's script, and to `/<row>/again` its image."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := connection.recv(65536):
                path = head.split(b" ")[1][1:]
                row = path.partition(b"/")[0]
                if b"/" in path:
                    connection.sendall(reply(row + b"-picture"))
                    continue
                script = self.scripts[int(row)]
                for piece in script.pieces:
                    connection.sendall(piece.replace(b"@", row))
                    time.sleep(0.0005)
                if script.closes:
                    return


def test_an_image_never_comes_under_another_row() -> None:
    server = Scripted()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
        config = DownloadConfig(
            connect_to={":80": f"127.0.0.1:{listener.getsockname()[1]}"},
            allow_private=("127.0.0.0/8",),
            deadline_s=5.0,
            threads=4,
            per_host_connections=2,
            retries=0,
        )

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(scripts(), min_size=2, max_size=8))
        def any_sequence(drawn: list[Script]) -> None:
            server.scripts = drawn
            fetch = Fetcher(config)
            urls = pa.array([f"{A}/{row}" for row in range(len(drawn))])
            found: dict[int, bytes | None] = {}
            why: dict[int, str] = {}
            with Schedule(urls, fetch, None, Paces(), config) as schedule:
                for result in schedule:
                    found[result.row], why[result.row] = result.body, f"{result.reason}: {result.detail}"
            fetch.close()
            for row, script in enumerate(drawn):
                own = b"%d-picture" % row
                body = found[row]
                assert body is None or body.startswith(own[: len(body)]), (row, body)
                if script.good and all(one.good or one.closes for one in drawn):
                    assert body == (own if script.comes else None), (row, body, why[row])

        any_sequence()
        listener.shutdown(socket.SHUT_RDWR)
