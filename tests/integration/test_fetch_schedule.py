"""Which link is asked when: no host faster than it may be, none at the cost of the others, nothing without end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import DNS, Refused
from altdiffusion.curation.web.fetch import Fetched, Fetcher
from altdiffusion.curation.web.robots import RobotsCache
from altdiffusion.curation.web.schedule import Paces, Result, Schedule
from tests.fetch_server import Answer, Site, reply, serving

A, B = "http://a.test", "http://b.test"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(keep=True) as running:
        yield running


def settings(site: Site, **given: Any) -> DownloadConfig:
    """Return settings under which every name is the server of the test."""
    usual = {
        "deadline_s": 20.0,
        "retries": 0,
        "retry_wait_s": 0.01,
        "threads": 8,
        "honor_robots": False,
        "connect_to": {":80": f"127.0.0.1:{site.port}"},
        "allow_private": ("127.0.0.0/8",),
    }
    return DownloadConfig(**{**usual, **given})


class Run:
    """Results of one unit in order of arrival, with the seconds after which each came."""

    def __init__(self, urls: Sequence[str], config: DownloadConfig, paces: Paces | None = None) -> None:
        fetcher = Fetcher(config)
        robots = RobotsCache(fetcher, config) if config.honor_robots else None
        start = time.monotonic()
        self.results: list[Result] = []
        self.seconds: list[float] = []
        with Schedule(pa.array(urls, pa.string()), fetcher, robots, paces or Paces(), config) as schedule:
            for result in schedule:
                self.results.append(result)
                self.seconds.append(time.monotonic() - start)
        fetcher.close()

    @property
    def outcome(self) -> list[bytes | str]:
        """Body or reason by row."""
        by_row = {result.row: result.reason if result.body is None else result.body for result in self.results}
        assert sorted(by_row) == list(range(len(self.results)))
        return [by_row[row] for row in sorted(by_row)]


def one_after_another(*answers: bytes) -> Answer:
    left = list(answers)
    return lambda connection: connection.sendall(left.pop(0) if len(left) > 1 else left[0])


def test_transient_refusals_are_tried_again_and_permanent_ones_are_not(site: Site) -> None:
    site.answers["/recovers"] = one_after_another(
        reply(status="503 Busy", Retry_After="0"), reply(status="429 Slow", Retry_After="0"), reply(b"at last")
    )
    site.answers["/busy"] = reply(status="503 Busy")
    site.answers["/closed"] = one_after_another(b"", reply(b"then"))
    urls = [f"http://{path}.test/{path}" for path in ("recovers", "busy", "gone", "closed")]
    run = Run(urls, settings(site, retries=2, deadline_s=2.0))
    assert run.outcome == [b"at last", "http_503", "http_404", b"then"]
    asked = site.asked()
    assert [asked.count(path) for path in ("/recovers", "/busy", "/gone")] == [3, 3, 1]


def test_one_host_is_not_asked_faster_than_allowed_however_it_is_spelled(site: Site) -> None:
    site.answers["/"] = reply(b"x")
    paces = Paces()
    urls = ["http://a.test/", "http://A.TEST/", "http://a.test./", "HTTP://a.test:80/", " http://a.test/ "]
    config = settings(site, per_host_per_s=20.0)
    first = Run(urls, config, paces)
    assert first.outcome == [b"x"] * 5 and first.seconds[-1] > 0.19
    second = Run(urls[:1], config, paces)  # the next unit of the worker waits for its turn too
    assert second.seconds[-1] > 0.02


def test_ten_thousand_rows_of_one_host_do_not_starve_the_others(site: Site) -> None:
    """The big host is asked at its rate for as long as the unit waits; its other rows are left for a later pass."""
    site.answers["/"] = reply(b"x")
    urls = ["http://big.test/"] * 10_000
    for number in range(200):
        urls.insert(37 * number, f"http://host{number % 40}.test/")
    config = settings(site, threads=4, per_host_per_s=100.0, host_wait_s=3.0)
    run = Run(urls, config)
    outcome = run.outcome
    others = [found for url, found in zip(urls, outcome, strict=True) if "host" in url]
    big = [found for url, found in zip(urls, outcome, strict=True) if "big" in url]
    assert others == [b"x"] * 200
    arrived = [at for at, result in enumerate(run.results) if "host" in urls[result.row]]
    assert arrived[-1] < 600, "the others came late"
    assert set(big) == {b"x", "host_busy"} and 50 < big.count(b"x") < 100 * run.seconds[-1] + 5
    assert len(site.asked("big.test")) == big.count(b"x")
    assert run.seconds[-1] < 60  # of 100
    assert any("waited 3 s" in result.detail for result in run.results)


def test_a_host_that_answers_slowly_holds_half_of_the_threads_at_most(site: Site) -> None:
    others_done, waiting = threading.Event(), [0]

    def slow(connection: socket.socket) -> None:
        waiting[0] += not others_done.is_set()
        others_done.wait(30)
        connection.sendall(reply(b"slow"))

    def fast(connection: socket.socket) -> None:
        connection.sendall(reply(b"fast"))
        if len(site.asked("b.test")) == 100:
            others_done.set()

    site.answers.update({"a.test/": slow, "b.test/": fast})
    run = Run([f"{A}/"] * 12 + [f"{B}/"] * 100, settings(site, threads=4, per_host_connections=100, deadline_s=60.0))
    assert run.outcome == [b"slow"] * 12 + [b"fast"] * 100
    assert others_done.is_set() and waiting == [2]


def test_retry_after_pauses_the_host_and_no_thread(site: Site) -> None:
    times: list[float] = []

    def first_busy(connection: socket.socket) -> None:
        times.append(time.monotonic())
        busy = reply(status="429 Slow down", Retry_After="3")
        connection.sendall(busy if len(times) == 1 else reply(b"a"))

    site.answers["a.test/"] = first_busy
    site.answers["b.test/"] = reply(b"b")
    urls = [f"{A}/"] * 3 + [f"{B}/"] * 60
    run = Run(urls, settings(site, threads=1, retries=1))  # a sleeping thread would be all there is
    assert run.outcome == [b"a"] * 3 + [b"b"] * 60
    assert all(later - times[0] >= 2.95 for later in times[1:])
    assert [result.body for result in run.results] == [b"b"] * 60 + [b"a"] * 3


def test_a_host_that_asks_for_more_time_than_there_is_is_left_alone(site: Site) -> None:
    site.answers["a.test/"] = reply(status="429 Tomorrow", Retry_After="86400")
    site.answers["b.test/"] = reply(b"b")
    run = Run([f"{A}/"] * 50 + [f"{B}/"], settings(site, threads=2))
    assert run.outcome == ["http_429"] + ["host_busy"] * 49 + [b"b"]
    assert len(site.asked("a.test")) == 1 and run.seconds[-1] < 60
    assert "asks to wait 86400 s" in {result.detail for result in run.results}


def test_a_storm_of_503_backs_off_and_ends(site: Site) -> None:
    site.answers["/"] = reply(status="503 Busy")
    run = Run([f"{A}/"] * 300, settings(site, retries=1, retry_wait_s=0.1, host_wait_s=1.5))
    counted = {reason: run.outcome.count(reason) for reason in ("http_503", "host_busy")}
    assert sum(counted.values()) == 300 and counted["host_busy"] > 200
    assert len(site.requests) < 60 and run.seconds[-1] < 60


def test_what_is_fetched_ahead_is_bounded(site: Site) -> None:
    site.answers["/"] = reply(bytes(1 << 20))
    urls = pa.array([f"http://h{number}.test/" for number in range(60)])
    config = settings(site, threads=4, lookahead_mib=3)
    with Schedule(urls, Fetcher(config), None, Paces(), config) as schedule:
        ends = time.monotonic() + 120
        while len(site.requests) < 3:
            assert time.monotonic() < ends
            time.sleep(0.01)
        time.sleep(0.7)
        assert len(site.requests) <= 3 + 4
        rows = [result.row for result in schedule]
    assert sorted(rows) == list(range(60))


def test_a_redirect_waits_for_the_turn_of_the_host_it_names(site: Site) -> None:
    site.answers["a.test/"] = reply(status="302 Found", Location=f"{B}/there")
    site.answers["b.test/there"] = reply(b"there")
    site.answers["a.test/loop"] = reply(status="302 Found", Location="/loop")
    site.answers["a.test/bad"] = reply(status="302 Found", Location="file:///etc/passwd")
    run = Run([f"{A}/"] * 4 + [f"{A}/loop", f"{A}/bad"], settings(site, per_host_per_s=10.0, max_redirects=3))
    assert run.outcome == [b"there"] * 4 + ["too_many_redirects", "blocked_scheme"]
    assert run.seconds[-1] > 0.8  # nine requests to a.test


def test_a_second_attempt_starts_from_the_link(site: Site) -> None:
    site.answers["a.test/"] = one_after_another(
        reply(status="302 Found", Location=f"{B}/old"), reply(status="302 Found", Location=f"{B}/new")
    )
    site.answers["b.test/old"] = reply(status="503 Busy")
    site.answers["b.test/new"] = reply(b"new")
    assert Run([f"{A}/"], settings(site, retries=1)).outcome == [b"new"]


def test_invalid_links_are_refused_at_once(site: Site) -> None:
    urls = ["", "no link", "file:///etc/passwd", "http://", "http://u:p@a.test/", "http://a.test:22/", "http://[::1]/"]
    assert Run(urls, settings(site)).outcome == [
        "blocked_scheme", "blocked_scheme", "blocked_scheme", "bad_url", "bad_url", "blocked_port", "blocked_address"
    ]  # fmt: skip
    assert not site.requests


def test_a_programming_error_ends_the_unit_instead_of_hanging_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Fetcher, *_: Any) -> Fetched:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Fetcher, "get", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        Run([f"{A}/"] * 500, settings(site))


def test_a_server_that_sends_faster_than_it_is_read_holds_up_nobody(site: Site) -> None:
    """Chunks of one byte take long to read, and there is always one more: all sockets are served by one thread."""
    others_done = threading.Event()

    def flood(connection: socket.socket) -> None:
        connection.sendall(reply(length=None, Transfer_Encoding="chunked"))
        piece = b"1\r\nx\r\n" * 100_000
        while not others_done.is_set():
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_RDWR)

    def last(connection: socket.socket) -> None:
        others_done.set()
        connection.sendall(reply(b"last"))

    site.answers.update({"a.test/": flood, "b.test/": reply(b"x"), "b.test/last": last})
    urls = [f"{A}/"] + [f"{B}/"] * 50 + [f"{B}/last"]
    run = Run(urls, settings(site, deadline_s=60.0, per_host_connections=1))
    assert run.outcome[1:] == [b"x"] * 50 + [b"last"] and others_done.is_set()
    assert run.outcome[0] in ("reset", "truncated")


def test_no_thread_is_left_behind(site: Site) -> None:
    site.answers["/"] = reply(b"x")
    before = threading.active_count()
    Run([f"{A}/"] * 20, settings(site))
    ends = time.monotonic() + 120
    while any(thread.name.startswith("fetch-") for thread in threading.enumerate()):
        assert time.monotonic() < ends
    assert threading.active_count() <= before + 20  # the server's own


def test_a_refusal_keeps_no_part_of_the_answer_alive(site: Site) -> None:
    """A traceback would hold the frames that hold the bytes."""
    site.answers["/"] = reply(b"x" * 1000)
    config = settings(site, max_bytes=10)
    with Schedule(pa.array([f"{A}/"]), Fetcher(config), None, Paces(), config) as schedule:
        assert next(schedule) == Result(0, None, "too_large", "1000 bytes declared")
    assert Refused(DNS, "b").__traceback__ is None
