"""DownloadWork: the whole way from links to shards, against a real server on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from altdiffusion.curation.config import ScoreConfig
from altdiffusion.curation.download.crawler import Crawler
from altdiffusion.curation.download.spill import SpillFile
from altdiffusion.curation.links.takedown import blocklist_lines, read_list, take_down
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.impact import impact
from altdiffusion.records import IMAGES, LINKS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import search
from tests import icc_profiles
from tests.download_lake import HOST, config, curate, download, image, publish_links
from tests.fetch_server import Site, certificate, reply, serving
from tests.full_disk import no_file_beyond


def reject_rows(version: Version) -> list[dict[str, Any]]:
    return [row for table in version.iter_rejects() for row in table.to_pylist()]


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def test_links_become_images_in_input_order_with_a_reason_for_every_other_row(tmp_path: Path, site: Site) -> None:
    jpeg, truncated = image(1, format="JPEG"), image(2, format="JPEG")
    bomb = image(3)[:16] + (60000).to_bytes(4, "big") * 2 + image(3)[24:]
    corrupt = bytearray(image(4))
    middle = corrupt.index(b"IDAT") + 12
    corrupt[middle : middle + 8] = bytes(8)
    bodies = {
        "/ok.png": image(0),
        "/ok.jpg": jpeg,
        "/ok.gif": image(5, format="GIF"),
        "/ok.webp": image(6, format="WEBP"),
        "/truncated.jpg": truncated[: len(truncated) // 2],
        "/bomb.png": bomb,
        "/page.jpg": b"<!doctype html>",
        "/tiny.png": image(7, (4, 4)),
        "/corrupt.png": bytes(corrupt),
        "/vector.svg": b"<svg/>",
    }
    site.answers.update({path: reply(body) for path, body in bodies.items()})
    site.answers["/far.png"] = reply(status="302 Found", Location="http://169.254.169.254/latest/meta-data/")
    site.answers["/short.png"] = reply(image(8)[:50], length=400)
    paths = [*bodies, "/far.png", "/short.png", "/gone.png"]
    urls = [f"http://{HOST}{path}" for path in paths] + ["file:///etc/passwd", "http://127.0.0.1:1/x"]
    links = publish_links(str(tmp_path), urls)
    # the guard's exception is for the test's server; this literal loopback address meets the port rule
    version = download(str(tmp_path), links, config(site))
    table = version.read()
    assert table.schema.equals(IMAGES)
    assert table["url"].to_pylist() == urls[:4]
    for row, path in zip(table.to_pylist(), paths[:4], strict=True):
        assert row["image_sha256"] == hashlib.sha256(bodies[path]).hexdigest()
        assert (row["original_width"], row["original_height"]) == (96, 64)
        assert (row["stored_width"], row["stored_height"], row["image_format"]) == (32, 32, "png")
        with Image.open(io.BytesIO(row["image"])) as opened:
            assert opened.size == (32, 32) and opened.format == "PNG"
        assert row["aesthetic_score"] == row["aesthetic"]
    rejects = pa.concat_tables(version.iter_rejects()).to_pylist()
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (4, "truncated"), (5, "too_many_pixels"), (6, "not_image"), (7, "dims"), (8, "decode"), (9, "format"),
        (10, "blocked_address"), (11, "truncated"), (12, "http_404"), (13, "blocked_scheme"), (14, "blocked_port"),
    ]  # fmt: skip
    assert [r["url"] for r in rejects] == urls[4:] and rejects[0]["sample_id"] == 104
    assert all(r["language"] in ("th", "ko") for r in rejects)


def test_arrival_order_threads_and_units_do_not_change_the_rows(tmp_path: Path, site: Site) -> None:
    delays = random.Random(7)

    def late(body: bytes) -> Any:
        def answer(connection: socket.socket) -> None:
            time.sleep(delays.random() * 0.05)
            connection.sendall(reply(body))

        return answer

    urls = []
    for number in range(40):
        site.answers[f"/{number}.png"] = late(image(number)) if number % 5 else reply(status="500 No")
        urls.append(f"http://{HOST}/{number}.png")
    lake = str(tmp_path)
    links = publish_links(lake, urls)
    first = download(lake, links, config(site, threads=16, decoders=3), "one")
    second = download(lake, links, config(site, threads=3, decoders=1), "two")
    assert first.shards == second.shards and first.rejects == second.rejects
    assert first.rows == 32 and first.manifest.rejects_by_reason == {"http_500": 8}
    cut = download(lake, publish_links(lake, urls, shard_rows=17), config(site, threads=7), "three", rows=6)
    assert cut.read().equals(first.read())


@pytest.mark.parametrize(("encode_format", "quality"), [("jpg", 95), ("webp", 90), ("png", 0)])
def test_size_mode_and_format_are_settings(tmp_path: Path, site: Site, encode_format: str, quality: int) -> None:
    site.answers["/a.png"] = reply(image(1, (200, 100)))
    site.answers["/small.png"] = reply(image(1, (40, 20)))
    links = publish_links(str(tmp_path), [f"http://{HOST}/a.png", f"http://{HOST}/small.png"])
    settings = config(
        site, resize_mode="keep_ratio", image_size=50, encode_format=encode_format, encode_quality=quality
    )
    rows = download(str(tmp_path), links, settings).read().to_pylist()
    assert [(row["stored_width"], row["stored_height"]) for row in rows] == [(100, 50), (40, 20)]  # never enlarged
    with Image.open(io.BytesIO(rows[0]["image"])) as opened:
        assert opened.format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[encode_format]


def test_no_link_at_all_is_an_empty_result(tmp_path: Path, site: Site) -> None:
    crawler = Crawler(config(site), ScoreConfig())
    crawler.setup()
    with crawler.crawl(LINKS.empty_table()) as crawled:
        assert list(crawled.tables()) == [] and crawled.refused()[0].tolist() == []
    crawler.close()


def test_all_links_dead_is_an_empty_result_with_reasons_not_a_failure(tmp_path: Path, site: Site) -> None:
    links = publish_links(str(tmp_path), [f"http://{HOST}/{i}" for i in range(3)])
    version = download(str(tmp_path), links, config(site))
    assert version.rows == 0 and version.manifest.rejects_by_reason == {"http_404": 3}


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    site.answers["/a.png"] = reply(image(1))
    download(str(tmp_path), publish_links(str(tmp_path), [f"http://{HOST}/a.png"]), config(site))
    assert list(scratch.iterdir()) == []


def test_a_download_over_tls(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, HOST)
    with serving(context, keep=True) as site:
        bodies = {f"/{number}.jpg": image(number, format="JPEG") for number in range(20)}
        site.answers.update({path: reply(body) for path, body in bodies.items()})
        links = publish_links(str(tmp_path), [f"https://{HOST}{path}" for path in bodies])
        settings = config(site, connect_to={f"{HOST}:443": f"127.0.0.1:{site.port}"}, ca_file=str(pem))
        rows = download(str(tmp_path), links, settings).read(["image_sha256"])["image_sha256"].to_pylist()
        assert rows == [hashlib.sha256(body).hexdigest() for body in bodies.values()]
        assert site.connections <= 8


def test_an_images_type_is_decided_by_its_bytes(tmp_path: Path, site: Site) -> None:
    """Content-Type and the name may state anything; a vector image or a page has none of the four formats."""
    answers = {
        "/a.txt": reply(image(1, format="JPEG"), Content_Type="text/plain"),
        "/b.svg": reply(image(2), Content_Type="image/svg+xml"),
        "/c.jpg": reply(image(3, format="WEBP"), Content_Type="image/jpeg"),
        "/d.jpg": reply(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/jpeg"),
        "/e.png": reply(b"<?xml?><!DOCTYPE svg SYSTEM 'file:///etc/passwd'><svg/>", Content_Type="image/png"),
        "/f.jpg": reply(b"%!PS-Adobe-3.0 EPSF-3.0", Content_Type="image/jpeg"),
        "/g.jpg": reply(b"<html>", Content_Type="image/jpeg"),
    }  # fmt: skip
    site.answers.update(answers)
    links = publish_links(str(tmp_path), [f"http://{HOST}{path}" for path in answers])
    version = download(str(tmp_path), links, config(site))
    assert [row["reason"] for row in reject_rows(version)] == ["format", "format", "format", "not_image"]
    assert version.rows == 3


def test_bombs_of_every_format_cost_nothing(tmp_path: Path, site: Site) -> None:
    def sized(body: bytes, at: int, sides: bytes) -> bytes:
        return body[:at] + sides + body[at + len(sides) :]

    jpeg, gif = image(1, format="JPEG"), image(2, format="GIF")
    out = io.BytesIO()
    Image.new("RGBA", (48, 32), (1, 2, 3, 4)).save(out, "WEBP")
    webp = out.getvalue()
    assert webp[12:16] == b"VP8X"
    bombs = {
        "/png": sized(image(0), 16, struct.pack(">II", 60000, 60000)),
        "/jpeg": sized(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", 65000, 65000)),
        "/gif": sized(gif, 6, struct.pack("<HH", 65000, 65000)),
        "/webp": sized(webp, 24, (16382).to_bytes(3, "little") * 2),
    }
    site.answers.update({path: reply(body) for path, body in bombs.items()})
    links = publish_links(str(tmp_path), [f"http://{HOST}{path}" for path in bombs])
    version = download(str(tmp_path), links, config(site))
    assert version.manifest.rejects_by_reason == {"too_many_pixels": 4}


def test_a_listed_image_is_dropped_in_memory_whatever_its_link(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = image(7) + b"CANARY"
    site.answers.update({"/ok": reply(image(1)), "/listed": reply(bad), "/listed-too?q=1": reply(bad)})
    listed = tmp_path / "list.txt"
    listed.write_text(f"# removed\nsha256:{hashlib.sha256(bad).hexdigest()}\nurl:http://elsewhere.test/x\n")
    pinned = hashlib.sha256(listed.read_bytes()).hexdigest()
    urls = [f"http://{HOST}{path}" for path in ("/ok", "/listed", "/listed-too?q=1")]
    links = publish_links(str(tmp_path), urls)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    written: list[bytes] = []
    store = SpillFile.store
    monkeypatch.setattr(
        SpillFile, "store", lambda self, row, body, **known: written.append(body) or store(self, row, body, **known)
    )
    settings = config(site, image_blocklist=str(listed), image_blocklist_sha256=pinned)
    version = download(str(tmp_path), links, settings)
    assert version.rows == 1 and len(written) == 1
    assert [(row["row"], row["reason"], row["detail"]) for row in reject_rows(version)] == [
        (1, "blocklist", None), (2, "blocklist", None)
    ]  # fmt: skip
    for path in (tmp_path / "datasets" / "images").rglob("*.parquet"):
        assert b"CANARY" not in path.read_bytes()
    with pytest.raises(AltDiffusionError, match=r"list\.txt"):
        download(
            str(tmp_path), links, config(site, image_blocklist=str(listed), image_blocklist_sha256="0" * 64), "other"
        )


def test_the_verdict_on_a_stated_hash(tmp_path: Path, site: Site) -> None:
    original = scene(1)
    edited, other = scene(1, logo=True), scene(2)
    for name, body in (("original", original), ("edited", edited), ("other", other)):
        site.answers[f"/{name}"] = reply(body)
    urls = [f"http://{HOST}/{name}" for name in ("original", "edited", "other")]
    whole = download(str(tmp_path), publish_links(str(tmp_path), urls), config(site, resize_mode="keep_ratio"), "plain")
    seen = int(whole.read(["phash"])["phash"][0].as_py()) & (2**64 - 1)
    sha, md5 = hashlib.sha256(original).hexdigest(), hashlib.md5(original).hexdigest()
    stated = [f"sha256:{sha}", f"md5:{md5}", f"phash:{seen:016x}"]
    given = [name for name in ("original", "edited", "other") for _ in stated]
    expected: list[str | None] = [*stated * 3, None]
    links = publish_links(
        str(tmp_path), [f"http://{HOST}/{name}" for name in given] + [f"http://{HOST}/other"], expected=expected
    )
    kept = download(str(tmp_path), links, config(site, on_mismatch="keep"), "kept")  # cropped: the hash is of the whole
    assert kept.read(["hash_verdict"])["hash_verdict"].to_pylist() == [
        "match", "match", "match", "mismatch", "mismatch", "drift", "mismatch", "mismatch", "mismatch", None
    ]  # fmt: skip
    strict = download(str(tmp_path), links, config(site), "strict")
    assert strict.manifest.rejects_by_reason == {"content_changed": 5}
    assert strict.read(["hash_verdict"])["hash_verdict"].to_pylist() == ["match"] * 3 + ["drift", None]
    assert reject_rows(strict)[0]["detail"] == f"the source states sha256:{sha}"


def test_what_became_of_stated_colours_is_a_column_and_counted(tmp_path: Path, site: Site) -> None:
    avif = {"quality": 95, "format": "AVIF"}
    images = {
        "plain": image(1), "srgb": image(1, icc_profile=icc_profiles.SRGB),
        "adobe": image(1, icc_profile=icc_profiles.ADOBE_RGB), "broken": image(1, icc_profile=b"nonsense" * 40),
        "avif": image(1, icc_profile=icc_profiles.PROPHOTO, **avif),
    }  # fmt: skip
    for name, body in images.items():
        site.answers[f"/{name}"] = reply(body)
    links = publish_links(str(tmp_path), [f"http://{HOST}/{name}" for name in images])
    version = download(str(tmp_path), links, config(site, resize_mode="no"))
    assert version.manifest.rejects_by_reason == {"format": 1}
    assert version.read(["color_profile"])["color_profile"].to_pylist() == [None, "same", "converted", "broken"]
    counted = {"color_profile|ko|converted": 1, "color_profile|th|broken": 1, "color_profile|th|same": 1}
    assert version.manifest.tally == counted
    stored = [np.asarray(Image.open(io.BytesIO(body))) for body in version.read(["image"])["image"].to_pylist()]
    assert (stored[0] == stored[1]).all() and (stored[0] == stored[3]).all() and (stored[0] != stored[2]).any()
    every = config(site, resize_mode="no", formats=("png", "avif"), color_space="as_coded")
    kept = download(str(tmp_path), links, every, "as-coded")
    assert kept.read(["color_profile"])["color_profile"].to_pylist() == [None] * 5 and not kept.manifest.tally


def scene(number: int, *, logo: bool = False) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 9, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((480, 320), Image.Resampling.BICUBIC)
    if logo:
        photo.paste((255, 255, 255), (380, 260, 470, 310))
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=90)
    return out.getvalue()


def test_a_unit_is_cut_into_shards_of_bounded_size(tmp_path: Path, site: Site) -> None:
    """Same rows, same order, whatever the cut; and the cut depends on nothing but the images."""
    draw = np.random.default_rng(5)
    urls = []
    for number in range(30):
        out = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (256, 256, 3), np.uint8)).save(out, "PNG", compress_level=0)
        site.answers[f"/{number}"] = reply(out.getvalue())
        urls.append(f"http://{HOST}/{number}")
    links = publish_links(str(tmp_path), urls)
    settings = {"resize_mode": "no", "encode_quality": 0}
    one = download(str(tmp_path), links, config(site, **settings), "one")
    cut = download(str(tmp_path), links, config(site, **settings, shard_mib=1, threads=3, decoders=2), "cut")
    again = download(str(tmp_path), links, config(site, **settings, shard_mib=1), "again")
    assert len(one.shards) == 1 and [shard.rows for shard in cut.shards] == [5] * 6
    assert cut.shards == again.shards
    assert cut.read().equals(one.read())
    assert cut.manifest.rows_by_language == one.manifest.rows_by_language == {"ko": 15, "th": 15}


def test_a_full_disk_is_an_error_of_the_unit_and_loses_no_row(tmp_path: Path, site: Site) -> None:
    for number in range(50):
        site.answers[f"/{number}"] = reply(image(number))
    links = publish_links(str(tmp_path), [f"http://{HOST}/{number}" for number in range(50)])
    opened = len(os.listdir("/proc/self/fd"))
    with no_file_beyond(4_000), pytest.raises(AltDiffusionError, match=r"images: writing failed.*File too large"):
        download(str(tmp_path), links, config(site))
    assert len(os.listdir("/proc/self/fd")) == opened
    assert download(str(tmp_path), links, config(site)).rows == 50


def test_a_redirect_to_what_is_listed_is_not_followed(tmp_path: Path, site: Site) -> None:
    """By link, by domain, over several hops, in any spelling; and the last link of every other one is a column."""
    hops = {
        "/plain.png": image(1),
        "/far.png": "http://other.test/far.png",
        "/twice.png": "/far.png",
        "/home.png": "/plain.png",
        "/bad-link.png": "//other.test/b%61d.png?utm_source=x",
        "/bad-domain.png": "http://img.EVIL.test./x.png",
        "/bad-later.png": "/bad-domain.png",
        "other.test/far.png": image(2),
        "other.test/bad.png": image(3),
        "img.evil.test/x.png": image(4),
    }
    for path, what in hops.items():
        site.answers[path] = reply(what) if isinstance(what, bytes) else reply(status="302 Found", Location=what)
    paths = [path for path in hops if path.startswith("/")]
    urls = [f"http://{HOST}{path}" for path in paths] + ["http://evil.test/y.png", f"http://{HOST}/plain.png?id"]
    links = publish_links(str(tmp_path), urls)
    text = f"url:http://OTHER。test/bad.png\ndomain:evil.test\nhash:{100 + len(urls) - 1}\n".encode()
    (tmp_path / "list.txt").write_bytes(text)
    pinned = (str(tmp_path / "list.txt"), hashlib.sha256(text).hexdigest())
    settings = config(site, connect_to={":80": f"127.0.0.1:{site.port}"}, honor_robots=False)
    expected = [
        ("/plain.png", None),
        ("/far.png", "http://other.test/far.png"),
        ("/twice.png", "http://other.test/far.png"),
        ("/home.png", f"http://{HOST}/plain.png"),
    ]
    for name, given, more in (
        ("images", replace(settings, image_blocklist=pinned[0], image_blocklist_sha256=pinned[1]), ()),
        ("sources", settings, (pinned,)),
    ):
        version = download(str(tmp_path), links, given, name, blocklists=more)
        rows = version.read(["url", "final_url"]).to_pylist()
        assert [(row["url"], row["final_url"]) for row in rows] == [
            (f"http://{HOST}{path}", to) for path, to in expected
        ]
        assert version.manifest.rejects_by_reason == {"blocklist": 5}
    assert not site.asked("img.evil.test") and not site.asked("evil.test")
    assert not any("bad.png" in path or "?id" in path for path in site.asked("other.test") + site.asked(HOST))
    assert download(str(tmp_path), links, settings, "all").rows == 6  # without a list, all that is there


def test_a_takedown_finds_where_redirects_led_and_a_later_pass_brings_nothing_back(tmp_path: Path, site: Site) -> None:
    lake = Lake(str(tmp_path))
    site.answers["/moved"] = reply(status="302 Found", Location="http://cdn.test/hidden.png")
    site.answers["cdn.test/hidden.png"] = site.answers["/again"] = reply(image(1))
    site.answers["/other"] = reply(image(2))
    busy = reply(status="503 Busy", Retry_After="0")
    for late in ("late", "copy", "listed"):
        site.answers[f"/{late}"] = busy
    names = ("moved", "other", "late", "copy", "listed")
    publish_links(lake.uri, [f"http://{HOST}/{name}" for name in names])
    settings = config(site, connect_to={":80": f"127.0.0.1:{site.port}"}, honor_robots=False, retry_wait_s=0.01)
    first = curate(lake.uri, settings)
    assert first.rows == 2 and first.manifest.rejects_by_reason == {"http_503": 3}
    wanted = tmp_path / "list.txt"
    wanted.write_text(f"domain:CDN.test\nurl:http://{HOST}/listed\n")
    found = impact(graphs.scan(lake.uri), search(lake, read_list(str(wanted))))
    assert {(held.node.name, held.rows) for held in found.held} == {("links", 2), ("images", 1)}
    removal, holdings = take_down(lake, first, read_list(str(wanted)))
    assert removal.after is not None and removal.rows == 1 and removal.links == 1
    assert "hash:100" in blocklist_lines(read_list(str(wanted)), holdings)

    site.answers["/late"], site.answers["/listed"] = reply(image(5)), reply(image(6))
    site.answers["/copy"] = reply(image(1))  # the image that was taken down, under another link
    second = curate(lake.uri, settings, passes=1)
    assert second.read(["url"])["url"].to_pylist() == [f"http://{HOST}/other", f"http://{HOST}/late"]
    assert second.manifest.rejects_by_reason == {"takedown": 1, "blocklist": 1, "http_503": 1}
    assert site.asked(HOST).count("/listed") == 1  # its link was erased: it is not asked for again
