"""A machine that cannot reach the links is not taken for dead links: nothing is recorded; the next start goes on."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.download import outage
from altdiffusion.curation.download.outage import Outage, Watch, is_doubtful
from altdiffusion.errors import AltDiffusionError
from tests.download_lake import HOST, config, curate, image, publish_links
from tests.fetch_server import Site, certificate, reply, serving
from tests.ports import free_port


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(keep=True) as running:
        yield running


def fill(site: Site, count: int, scheme: str = "http") -> list[str]:
    for number in range(count):
        site.answers[f"/{number}"] = reply(image(number))
    return [f"{scheme}://{HOST}/{number}" for number in range(count)]


@pytest.mark.parametrize("wrong", ["connect", "blocked_address", "dns", "timeout", "reset", "robots_unreachable"])
def test_the_same_command_gives_every_image_once_the_setting_is_right(tmp_path: Path, site: Site, wrong: str) -> None:
    """Three units of a hundred rows each: all of them fail for reasons that are not the links'."""
    rows = 300 if wrong in ("connect", "blocked_address", "dns") else 30
    links = fill(site, rows)
    right = config(site, rows_per_unit=rows // 3, deadline_s=30.0, retries=0)
    bad = right
    if wrong == "robots_unreachable":
        site.answers["/robots.txt"] = reply(status="500 Oops")
    elif wrong == "dns":
        bad = replace(right, connect_to={":80": f"{HOST}:80"})
    elif wrong == "blocked_address":
        bad = replace(right, allow_private=())
    elif wrong == "connect":
        bad = replace(right, connect_to={":80": f"127.0.0.1:{free_port()}"})
    with contextlib.ExitStack() as stack:
        if wrong in ("timeout", "reset"):
            other = stack.enter_context(mute(closes=wrong == "reset"))
            bad = replace(right, connect_to={":80": f"127.0.0.1:{other}"}, deadline_s=0.5, honor_robots=False)
        publish_links(str(tmp_path), links)
        for _ in range(2 if wrong == "connect" else 1):  # a second start with the same settings ends as the first
            with pytest.raises(AltDiffusionError, match=rf"none was accepted \({wrong} \d+.*connect_to") as caught:
                curate(str(tmp_path), bad, passes=1)
            assert "none of this is recorded" in str(caught.value)
    site.answers.pop("/robots.txt", None)
    right = replace(right, deadline_s=bad.deadline_s, honor_robots=bad.honor_robots)  # these are part of the result
    assert curate(str(tmp_path), right, passes=1).rows == rows


@contextlib.contextmanager
def mute(*, closes: bool) -> Iterator[int]:
    """Yield the port of a server that does not answer, or closes at once."""
    with serving() as other:
        for number in range(200):
            other.answers[f"/{number}"] = b"" if closes else lambda connection: connection.recv(1) and None
        yield other.port


def test_a_missing_certificate_authority_is_detected(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, HOST)
    with serving(context, keep=True) as site:
        publish_links(str(tmp_path), fill(site, 40, "https"))
        wrong = config(site, connect_to={":443": f"127.0.0.1:{site.port}"}, deadline_s=30.0)
        with pytest.raises(AltDiffusionError, match=r"none was accepted \(tls 40\).*ca_file"):
            curate(str(tmp_path), wrong)
        assert curate(str(tmp_path), replace(wrong, ca_file=str(pem))).rows == 40


def test_dead_links_stop_nothing_and_are_recorded(tmp_path: Path, site: Site) -> None:
    """Half of each unit is dead, and two units wholly, the first one among them: only those are tried again."""
    alive, port = fill(site, 40), free_port()
    dead = [f"http://gone.test:{port}/{number}" for number in range(60)]
    mixed = [url for pair in zip(alive, dead[20:], strict=True) for url in pair]
    publish_links(str(tmp_path), [*dead[:10], *mixed, *dead[10:20]])
    settings = config(site, rows_per_unit=10, ports=(80, port), honor_robots=False)
    settings.connect_to[f"gone.test:{port}"] = f"127.0.0.1:{port}"
    version = curate(str(tmp_path), settings)
    assert version.rows == 40 and version.manifest.rejects_by_reason == {"connect": 60}
    assert Counter(site.asked(HOST)).most_common(1)[0][1] <= 1 + 2 * 2  # controls: twice for each dead unit


def test_an_outage_in_the_middle_keeps_what_was_done(tmp_path: Path) -> None:
    with serving() as site:
        urls = fill(site, 30)
        settings = config(site, rows_per_unit=10, deadline_s=30.0, honor_robots=False)
        lake = str(tmp_path)
        publish_links(lake, urls)

        def last(connection: socket.socket) -> None:
            site.answers.update({f"/{number}": b"" for number in range(30)})  # closes without an answer from now on
            connection.sendall(reply(image(9)))

        site.answers["/9"] = last
        with pytest.raises(AltDiffusionError, match=r"of 20 rows tried in 2 units none was accepted \(reset 20\)"):
            curate(lake, replace(settings, per_host_connections=1, threads=2))
        fill(site, 30)
        asked = len(site.requests)
        assert curate(lake, settings).rows == 30
        assert len(site.requests) - asked == 20  # the first unit was recorded


def test_an_outage_that_ends_before_it_is_detected_costs_nothing(tmp_path: Path) -> None:
    """The rows of one unit meet a server that is down; the control, asked behind them, finds it up again."""
    with serving() as site:
        urls = fill(site, 20)
        settings = config(site, rows_per_unit=10, deadline_s=30.0, honor_robots=False)
        publish_links(str(tmp_path), urls)
        down = dict.fromkeys((f"/{number}" for number in range(10, 20)), b"")

        def last(connection: socket.socket) -> None:
            site.answers.update(down)
            connection.sendall(reply(image(9)))

        def control(connection: socket.socket) -> None:
            fill(site, 20)
            connection.sendall(reply(image(0)))

        answers = [lambda connection: connection.sendall(reply(image(0))), control]
        site.answers["/0"], site.answers["/9"] = (lambda connection: answers.pop(0)(connection)), last
        version = curate(str(tmp_path), replace(settings, per_host_connections=1, threads=2))
        assert version.rows == 20 and not answers
        assert site.asked().count("/19") == 2


def test_what_is_gone_for_good_can_be_recorded(tmp_path: Path, site: Site) -> None:
    lake, port = str(tmp_path), free_port()
    publish_links(lake, [*fill(site, 10), *(f"http://gone.test/{n}" for n in range(10))])
    settings = config(site, rows_per_unit=10, deadline_s=30.0, honor_robots=False)
    settings.connect_to["gone.test:80"] = f"127.0.0.1:{port}"
    away = replace(settings, connect_to={":80": f"127.0.0.1:{port}"})
    with pytest.raises(AltDiffusionError, match="believe_failures=true"):
        curate(lake, away)
    with pytest.raises(AltDiffusionError, match="would be empty"):
        curate(lake, replace(away, believe_failures=True))
    assert curate(lake, settings).rows == 10  # that left no record either: the web may answer another time


def test_a_later_pass_without_a_network_is_made_later(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    urls = fill(site, 20)
    for number in range(10, 20):
        site.answers[f"/{number}"] = reply(status="503 Busy", Retry_After="0")
    publish_links(lake, urls)
    settings = config(site, rows_per_unit=10, deadline_s=30.0, honor_robots=False, retry_wait_s=0.01)
    assert curate(lake, settings).rows == 10
    away = replace(settings, connect_to={":80": f"127.0.0.1:{free_port()}"})
    with pytest.raises(AltDiffusionError, match=r"retry stopped.*none was accepted \(connect 10\)"):
        curate(lake, away, passes=1)
    dead = replace(settings, connect_to=dict(settings.connect_to))
    fill(site, 20)
    assert curate(lake, dead, passes=1).rows == 20


def test_a_long_unit_of_time_outs_is_not_waited_for(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "SAMPLE", 10)
    urls = fill(site, 200)
    publish_links(str(tmp_path), urls)
    with mute(closes=False) as port:
        settings = config(site, deadline_s=0.5, honor_robots=False)
        with pytest.raises(AltDiffusionError, match="none was accepted") as caught:
            curate(str(tmp_path), replace(settings, connect_to={":80": f"127.0.0.1:{port}"}))
    tried = re.search(r"of (\d+) rows tried in 1 unit none", str(caught.value))
    assert tried is not None and 10 <= int(tried[1]) < 100
    assert curate(str(tmp_path), settings, passes=1).rows == 200  # the later pass: this machine may be busy


@pytest.mark.parametrize(
    ("accepted", "reasons", "doubtful"),
    [
        (0, {"connect": 300}, True),
        (2, {"connect": 200, "dns": 90, "timeout": 8}, True),
        (3, {"connect": 297}, False),  # 1 %
        (0, {"connect": 95, "http_404": 5}, True),
        (0, {"connect": 94, "http_404": 6}, False),
        (150, {"dns": 150}, False),
        (0, {"blocklist": 90, "bad_url": 5, "tls": 1}, True),
        (0, {"blocklist": 90, "opt_out:robots": 10}, False),
        (0, {"http_404": 10}, False),
        (0, {}, False),
    ],
)
def test_which_units_are_doubtful(accepted: int, reasons: dict[str, int], doubtful: bool) -> None:
    assert is_doubtful(accepted, reasons) is doubtful


def test_a_long_unit_ends_when_nothing_answers_and_goes_on_when_something_does() -> None:
    asked: list[Any] = []

    def watch(works: bool, patience_s: float = 0.0) -> Watch:
        return Watch(lambda: ["http://known/"], lambda links: bool(asked.append(links)) or works, patience_s)

    def see(watched: Watch, *reasons: str) -> None:
        for reason in reasons:
            watched.see(reason)

    failures = ["timeout"] * outage.SAMPLE
    with pytest.raises(Outage) as caught:
        see(watch(False), "blocklist", *failures)
    assert caught.value.reasons == {"timeout": outage.SAMPLE} and len(asked) == 1
    see(watch(True), *failures * 3)
    assert len(asked) == 2
    see(watch(False, 1e6), *failures * 3)  # not before one link's time has passed
    see(watch(False), "", *failures * 3)  # a body came
    see(watch(False), *failures[1:], "http_404", *failures)
    assert len(asked) == 2
