"""The later pass: what failed for a while is fetched once more, everything else stays as it was."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.config import DownloadConfig, RetryConfig
from altdiffusion.curation.download.retry import RetryWork, carried, plan_retry
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake, Version
from tests.download_lake import HOST, config, download, image, publish_links
from tests.fetch_server import Answer, Site, reply, serving

OF_EACH = 6
ROWS = 6 * OF_EACH


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(keep=True) as running:
        yield running


def failing_once(body: bytes, failure: bytes) -> Answer:
    """Return an answer: `failure` the first time (None: silence until the client leaves), then the body."""
    asked: list[int] = []
    lock = threading.Lock()

    def answer(connection: socket.socket) -> None:
        with lock:
            asked.append(1)
            first = len(asked) == 1
        if first and not failure:
            time.sleep(2)
            raise OSError("enough")
        connection.sendall(failure if first else reply(body))

    return answer


def fill(site: Site) -> list[str]:
    """Set up the rows: 0 mod 6 come at once, 1 fail with 503, 2 with 500, 3 time out once, 4 are gone, 5 not images."""
    for number in range(ROWS):
        body = image(number)
        site.answers[f"/{number}"] = [
            reply(body),
            failing_once(body, reply(status="503 Busy", Retry_After="0")),
            failing_once(body, reply(status="500 Oops")),
            failing_once(body, b""),
            reply(status="404 Not Found"),
            reply(b"<!doctype html>"),
        ][number % 6]
    return [f"http://{HOST}/{number}" for number in range(ROWS)]


def retry(
    lake: str,
    links: Version,
    images: Version,
    settings: DownloadConfig,
    name: str = "images",
    given: RetryConfig | None = None,
) -> Version:
    """Do what `jobs.curate` does at this pipeline step, in this process."""
    work = RetryWork(lake=lake, dataset=name, download=settings, retry=given or RetryConfig())
    work.setup()
    try:
        records = [carried(images), *(work.run(unit) for unit in plan_retry(links, images, settings))]
    finally:
        work.close()
    return (
        Lake(lake)
        .dataset(name)
        .publish(kind="images", records=records, parents=[images.ref], config={}, fingerprint="g")
    )


def rejects(version: Version) -> list[dict[str, Any]]:
    return [row for table in version.iter_rejects() for row in table.to_pylist()]


def settings(site: Site, **given: Any) -> DownloadConfig:
    return config(site, deadline_s=1.0, honor_robots=False, rows_per_unit=10, per_host_connections=8, **given)


@pytest.mark.parametrize("shard_rows", [1000, 23])
def test_what_failed_for_a_while_comes_and_nothing_else_is_asked(tmp_path: Path, site: Site, shard_rows: int) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, fill(site), shard_rows)
    first = download(lake, links, settings(site), rows=10)
    assert first.rows == OF_EACH
    reasons = ("http_404", "http_500", "http_503", "not_image", "timeout")
    assert first.manifest.rejects_by_reason == dict.fromkeys(reasons, OF_EACH)
    before = len(site.requests)
    second = retry(lake, links, first, settings(site))
    assert second.rows == 4 * OF_EACH
    assert second.manifest.rejects_by_reason == {"http_404": OF_EACH, "not_image": OF_EACH}
    asked = Counter(int(path[1:]) % 6 for path in site.asked()[before:])
    assert asked == {1: OF_EACH, 2: OF_EACH, 3: OF_EACH}  # neither the 404s again, nor what is not an image
    assert second.shards[: len(first.shards)] == first.shards
    assert sorted(second.read(["sample_id"])["sample_id"].to_pylist()) == [
        100 + row for row in range(ROWS) if row % 6 < 4
    ]
    assert second.manifest.rows_by_language == {"ko": 2 * OF_EACH, "th": 2 * OF_EACH}
    old = {(row["unit_id"], row["row"]): row for row in rejects(first)}
    assert all(old[row["unit_id"], row["row"]] == row for row in rejects(second))


def test_the_pass_gives_the_rows_that_a_good_day_would_have_given(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, fill(site))
    patched = retry(lake, links, download(lake, links, settings(site), rows=10), settings(site))
    good = download(lake, links, settings(site), "good", rows=10)  # nothing fails now
    by_id = [("sample_id", "ascending")]
    assert patched.read().sort_by(by_id).equals(good.read().sort_by(by_id))


def test_its_digest_depends_on_nothing_else(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, fill(site))
    first = download(lake, links, settings(site), rows=10)
    one = retry(lake, links, first, settings(site))
    two = retry(lake, links, first, settings(site, threads=3, decoders=2))
    assert one.ref == two.ref


def test_what_fails_again_keeps_its_new_reason_and_can_come_in_a_further_pass(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    answers = [reply(status="503 Busy"), reply(status="502 Bad"), reply(image(1))]
    site.answers["/a"] = lambda connection: connection.sendall(answers.pop(0))
    site.answers["/b"] = reply(status="410 Gone")
    links = publish_links(lake, [f"http://{HOST}/b", f"http://{HOST}/a"])
    first = download(lake, links, settings(site), rows=10)
    second = retry(lake, links, first, settings(site))
    assert [(row["row"], row["reason"]) for row in rejects(first)] == [(0, "http_410"), (1, "http_503")]
    assert [(row["row"], row["reason"]) for row in rejects(second)] == [(0, "http_410"), (1, "http_502")]
    assert {row["unit_id"] for row in rejects(second)} == {row["unit_id"] for row in rejects(first)}
    third = retry(lake, links, second, settings(site))
    assert third.rows == 1 and third.manifest.rejects_by_reason == {"http_410": 1}


def test_the_reasons_are_a_setting(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, fill(site))
    first = download(lake, links, settings(site), rows=10)
    only = retry(lake, links, first, settings(site), "only", RetryConfig(reasons=("http_503",)))
    assert only.rows == 2 * OF_EACH and only.manifest.rejects_by_reason["http_500"] == OF_EACH
    before = len(site.requests)
    none = retry(lake, links, first, settings(site), "none", RetryConfig(reasons=()))
    assert none.rows == OF_EACH and len(site.requests) == before
    assert none.manifest.rejects_by_reason == first.manifest.rejects_by_reason


def test_a_version_without_rejects_has_nothing_to_plan(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    site.answers["/1"] = reply(image(1))
    links = publish_links(lake, [f"http://{HOST}/1"])
    first = download(lake, links, settings(site))
    assert plan_retry(links, first, settings(site)) == []
    assert retry(lake, links, first, settings(site)).shards == first.shards


def test_other_links_than_it_was_made_from_are_an_error(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, fill(site))
    first = download(lake, links, settings(site), rows=10)
    with pytest.raises(AltDiffusionError, match=r"was not downloaded from .* by 7 rows per unit"):
        retry(lake, links, first, config(site, rows_per_unit=7))


def test_units_hold_as_many_rejects_shards_as_fit(tmp_path: Path, site: Site) -> None:
    lake = str(tmp_path)
    links = publish_links(lake, [f"http://{HOST}/none{number}" for number in range(45)])
    first = download(lake, links, settings(site), rows=10)
    assert [shard.rows for shard in first.rejects] == [10, 10, 10, 10, 5]
    units = plan_retry(links, first, config(site, rows_per_unit=20))
    assert [(unit.payload["first"], unit.payload["stop"]) for unit in units] == [(0, 2), (2, 4), (4, 5)]
    assert [unit.index for unit in units] == [0, 1, 2] and len({unit.id for unit in units}) == 3


@pytest.mark.parametrize(
    ("reason", "covered"),
    [
        ("timeout", True), ("http_503", True), ("http_500", True), ("http_429", True), ("http_408", True),
        ("host_busy", True), ("robots_unreachable", True), ("http_404", False), ("http_410", False),
        ("opt_out:robots", False), ("blocked_address", False), ("blocklist", False), ("decode", False),
    ],
)  # fmt: skip
def test_which_reasons_are_covered(reason: str, covered: bool) -> None:
    assert RetryConfig().covers(reason) is covered
