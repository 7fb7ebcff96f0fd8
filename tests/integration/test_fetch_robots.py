"""robots.txt of real servers: asked once, obeyed, and no reason for other sites to wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import DNS, Refused
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.curation.web.names import Names
from altdiffusion.curation.web.resolvers import InThreads
from altdiffusion.curation.web.robots import MAX_BYTES, RobotsCache
from altdiffusion.curation.web.schedule import Paces, Schedule
from tests.download_lake import config as download_config
from tests.download_lake import download, image, publish_links
from tests.fetch_server import Site, canary, certificate, reply, serving

A, B = "http://a.test", "http://b.test"
NOTHING = reply(b"User-agent: *\nDisallow: /\n")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        running.answers["/x"] = reply(b"x")
        yield running


class Worker:
    """What a worker keeps from unit to unit."""

    def __init__(self, site: Site, **given: Any) -> None:
        usual = {
            "deadline_s": 20.0,
            "robots_deadline_s": 10.0,
            "retries": 0,
            "retry_wait_s": 0.01,
            "threads": 8,
            "user_agent": "OurBot/1.0 (mail@example.org)",
            "connect_to": {":80": f"127.0.0.1:{site.port}"},
            "allow_private": ("127.0.0.0/8",),
        }
        self.config = DownloadConfig(**{**usual, **given})
        self.fetcher = Fetcher(self.config)
        self.robots = RobotsCache(self.fetcher, self.config) if self.config.honor_robots else None
        self.paces = Paces()

    def unit(self, *urls: str) -> list[bytes | str]:
        """Return the body or the reason, by row."""
        found: dict[int, bytes | str] = {}
        given = pa.array(urls, pa.string())
        with Schedule(given, self.fetcher, self.robots, self.paces, self.config) as schedule:
            for result in schedule:
                found[result.row] = result.reason if result.body is None else result.body
        return [found[row] for row in range(len(urls))]


def test_it_is_asked_once_a_site_and_obeyed(site: Site) -> None:
    site.answers["/robots.txt"] = reply(b"User-agent: *\nDisallow: /\n\nUser-agent: ourbot\nDisallow: /private\n")
    site.answers["/private/x"] = reply(b"secret")
    worker = Worker(site)
    urls = [f"{A}/x", f"{A}/private/x", f"{A}/%70rivate/x", f"{A}/x"] * 20
    assert worker.unit(*urls) == [b"x", "opt_out:robots", "opt_out:robots", b"x"] * 20
    assert worker.unit(f"{A}/x", f"{A}/private/x") == [b"x", "opt_out:robots"]
    asked = site.asked()
    assert asked[0] == "/robots.txt" and asked.count("/robots.txt") == 1 and "/private/x" not in asked
    assert b"User-Agent: OurBot/1.0 (mail@example.org)\r\n" in site.requests[0]
    assert worker.unit(f"{B}/x") == [b"x"] and site.asked("b.test") == ["/robots.txt", "/x"]  # another site


def test_it_is_not_asked_where_the_config_disables_it(site: Site) -> None:
    site.answers["/robots.txt"] = NOTHING
    assert Worker(site, honor_robots=False).unit(f"{A}/x") == [b"x"]
    assert site.asked() == ["/x"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(status="404 Not Found"), b"x"),
        (reply(status="403 Forbidden"), b"x"),  # RFC 9309, 2.3.1.3
        (reply(status="204 No Content"), b"x"),
        (reply(status="302 Found"), b"x"),
        (reply(status="302 Found", Location="/robots.txt"), b"x"),  # for ever: 2.3.1.2
        (reply(b"<!doctype html>"), b"x"),
        (reply(NOTHING.partition(b"\r\n\r\n")[2], X_Robots_Tag="noai"), "opt_out:robots"),
        (reply(status="500 Oops"), "robots_unreachable"),
        (reply(status="503 Busy"), "robots_unreachable"),
        (reply(status="429 Slow"), "robots_unreachable"),
        (reply(b"User-agent: *", length=100), "robots_unreachable"),
        (reply(b"x", Content_Encoding="gzip"), "robots_unreachable"),
        (b"HELLO\r\n\r\n", "robots_unreachable"),
        (b"", "robots_unreachable"),
        (reply(status="302 Found", Location="http://10.0.0.1/"), "robots_unreachable"),
        (reply(status="302 Found", Location="file:///etc/passwd"), "robots_unreachable"),
    ],
)
def test_what_an_answer_means(site: Site, answer: bytes, expected: bytes | str) -> None:
    site.answers["/robots.txt"] = answer
    assert Worker(site).unit(f"{A}/x", f"{A}/x") == [expected, expected]
    if isinstance(expected, str):
        assert "/x" not in site.asked()


def test_a_failure_is_tried_again_and_then_remembered(site: Site) -> None:
    answers = [reply(status="500 Oops"), reply(b"")]
    site.answers["/robots.txt"] = lambda connection: connection.sendall(answers.pop(0))
    assert Worker(site, retries=1).unit(f"{A}/x") == [b"x"]
    site.answers["/robots.txt"] = reply(status="500 Oops")
    worker = Worker(site, retries=1)
    assert worker.unit(f"{B}/x", f"{B}/x") == ["robots_unreachable"] * 2
    assert worker.unit(f"{B}/x") == ["robots_unreachable"]
    assert site.asked("b.test") == ["/robots.txt"] * 2


def test_a_host_that_is_not_there_is_its_own_reason_and_asked_once(site: Site) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    worker = Worker(site, connect_to={"a.test:80": f"127.0.0.1:{port}", "b.test:80": "no.test:80"})
    worker.fetcher._names = Names(InThreads(lambda host, *_: _no_name(host)))
    assert worker.unit(f"{A}/x", f"{A}/y", f"{B}/x") == ["connect", "connect", "dns"]
    assert worker.unit("http://10.0.0.1/x", "http://169.254.169.254/latest") == ["blocked_address"] * 2


def _no_name(host: str) -> Sequence[str]:
    raise Refused(DNS, host)


def test_a_redirect_of_it_is_followed_within_the_guard(site: Site) -> None:
    site.answers["a.test/robots.txt"] = reply(status="301 Moved", Location=f"{B}/elsewhere")
    site.answers["b.test/elsewhere"] = NOTHING
    assert Worker(site).unit(f"{A}/x") == ["opt_out:robots"]
    with canary() as (port, seen), serving(address="127.0.0.77") as other:
        other.answers["a.test/robots.txt"] = reply(status="301 Moved", Location=f"http://127.0.0.1:{port}/robots.txt")
        allowed = {"connect_to": {":80": f"127.0.0.77:{other.port}"}, "allow_private": ("127.0.0.77/32",)}
        worker = Worker(other, ports=(80, port), **allowed)
        assert worker.unit(f"{A}/x") == ["robots_unreachable"]
        assert not seen


def test_the_target_of_a_redirect_is_asked_too(site: Site) -> None:
    site.answers["a.test/there"] = reply(status="302 Found", Location=f"{B}/x")
    site.answers["b.test/robots.txt"] = NOTHING
    assert Worker(site).unit(f"{A}/there") == ["opt_out:robots"]
    assert site.asked("b.test") == ["/robots.txt"]


def test_slow_ones_cost_their_deadline_and_hold_no_host_that_is_known(site: Site) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(reply(length=1000))
        while True:
            connection.sendall(b"#")
            time.sleep(0.05)

    for number in range(12):
        site.answers[f"slow{number}.test/robots.txt"] = drip
    urls = [f"http://slow{number}.test/x" for number in range(12)] + [f"{A}/x"] * 30
    worker = Worker(site, threads=4, robots_deadline_s=0.5)
    worker.unit(f"{A}/x")
    found: dict[int, str] = {}  # in order of arrival
    with Schedule(pa.array(urls), worker.fetcher, worker.robots, worker.paces, worker.config) as schedule:
        for result in schedule:
            found[result.row] = result.reason
    assert [found[row] for row in range(12)] == ["robots_unreachable"] * 12
    assert [found[row] for row in range(12, 42)] == [""] * 30
    last = list(found)[-4:]  # half of the threads wait for the slow ones, 3 s in all
    assert max(last) < 12, f"rows {last} came last"


def test_what_follows_500_kib_is_not_read(site: Site) -> None:
    start = b"User-agent: *\nDisallow: /x\n"
    site.answers["/robots.txt"] = reply(start + b"#" * MAX_BYTES + b"\nAllow: /x\nDisallow: /\n")
    site.answers["/y"] = reply(b"y")
    assert Worker(site).unit(f"{A}/x", f"{A}/y") == ["opt_out:robots", b"y"]

    def endless(connection: socket.socket) -> None:
        connection.sendall(reply(start, length=None))
        while True:
            connection.sendall(b"#" * 65536)

    site.answers["/robots.txt"] = endless
    assert Worker(site).unit(f"{B}/x", f"{B}/y") == ["opt_out:robots", b"y"]


def test_a_crawl_delay_is_kept_up_to_the_bound(site: Site) -> None:
    site.answers["/robots.txt"] = reply(b"User-agent: *\nCrawl-delay: 3600\n")
    worker = Worker(site, max_crawl_delay_s=0.2)
    for _ in range(2):  # the second unit knows it without asking
        start = time.monotonic()
        assert worker.unit(*[f"{A}/x"] * 4) == [b"x"] * 4
        assert 0.55 < time.monotonic() - start < 60
        time.sleep(0.25)


def test_rows_that_are_forbidden_cost_no_turn(site: Site) -> None:
    site.answers["/robots.txt"] = NOTHING
    start = time.monotonic()
    assert Worker(site, per_host_per_s=2.0).unit(*[f"{A}/x"] * 1000) == ["opt_out:robots"] * 1000
    assert time.monotonic() - start < 60  # of 500


def test_http_and_https_of_a_name_are_two_sites(tmp_path: Path, site: Site) -> None:
    context, pem = certificate(tmp_path, "a.test")
    site.answers["/robots.txt"] = NOTHING
    with serving(context) as secure:
        secure.answers["/x"] = reply(b"secure")
        connect_to = {":80": f"127.0.0.1:{site.port}", ":443": f"127.0.0.1:{secure.port}"}
        worker = Worker(site, connect_to=connect_to, ca_file=str(pem))
        assert worker.unit(f"{A}/x", "https://a.test/x") == ["opt_out:robots", b"secure"]


def test_a_download_obeys_it(tmp_path: Path, site: Site) -> None:
    site.answers["/robots.txt"] = reply(b"User-agent: AltDiffusionPlatform\nDisallow: /no\n")
    site.answers["/no/1.png"], site.answers["/yes/1.png"] = reply(image(1)), reply(image(2))
    links = publish_links(str(tmp_path), ["http://pictures.test/no/1.png", "http://pictures.test/yes/1.png"])
    version = download(str(tmp_path), links, download_config(site))
    assert version.rows == 1 and version.manifest.rejects_by_reason == {"opt_out:robots": 1}
    kept = download(str(tmp_path), links, download_config(site, honor_robots=False), "kept")
    assert kept.rows == 2
