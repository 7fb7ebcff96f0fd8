"""DownloadWork: img2dataset's Downloader with the guarded fetch, against a real server on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.download import DownloadWork, plan_download
from altdiffusion.records import IMAGES, LINKS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from tests.fetch_server import Site, reply, serving

HOST = "pictures.test"


def picture(number: int, size: tuple[int, int] = (96, 64), format: str = "PNG") -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.NEAREST).save(out, format, quality=90)
    return out.getvalue()


def publish_links(lake: str, urls: list[str], shard_rows: int = 1000) -> Version:
    dataset = Lake(lake).dataset("links")
    columns: dict[str, Any] = {
        "sample_id": list(range(100, 100 + len(urls))),
        "url": urls,
        "caption": [f"caption {i}" for i in range(len(urls))],
        "language": ["th" if i % 2 else "ko" for i in range(len(urls))],
        "language_score": [0.9] * len(urls),
        "aesthetic": [7.0 + i / 100 for i in range(len(urls))],
        "source": ["s"] * len(urls),
    }
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(urls), field.type)
            for field in LINKS
        ],
        schema=LINKS,
    )
    shards = tuple(dataset.write_shard(table.slice(start, shard_rows)) for start in range(0, len(urls), shard_rows))
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=len(urls), shards=shards)
    return dataset.publish(kind="links", records=[record], parents=[], config={}, fingerprint="f")


def config(site: Site, **given: Any) -> DownloadConfig:
    settings: dict[str, Any] = {
        "image_size": 32,
        "resize_mode": "center_crop",
        "encode_format": "png",
        "encode_quality": 3,
        "min_side": 8,
        "deadline_s": 3.0,
        "retries": 0,
        "connect_to": {f"{HOST}:80": f"127.0.0.1:{site.port}"},
        "allow_private": ("127.0.0.0/8",),
    }
    return DownloadConfig(**{**settings, **given})


def download(lake: str, links: Version, settings: DownloadConfig, name: str = "images", rows: int = 1000) -> Version:
    work = DownloadWork(lake=lake, dataset=name, download=settings)
    work.setup()
    records = [work.run(unit) for unit in plan_download(links, rows)]
    return Lake(lake).dataset(name).publish(
        kind="images", records=records, parents=[links.ref], config={}, fingerprint="f"
    )  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def test_links_become_images_in_input_order_with_a_reason_for_every_other_row(tmp_path: Path, site: Site) -> None:
    jpeg, truncated = picture(1, format="JPEG"), picture(2, format="JPEG")
    bomb = picture(3)[:16] + (60000).to_bytes(4, "big") * 2 + picture(3)[24:]
    corrupt = bytearray(picture(4))
    middle = corrupt.index(b"IDAT") + 12
    corrupt[middle : middle + 8] = bytes(8)
    bodies = {
        "/ok.png": picture(0),
        "/ok.jpg": jpeg,
        "/ok.gif": picture(5, format="GIF"),
        "/ok.webp": picture(6, format="WEBP"),
        "/truncated.jpg": truncated[: len(truncated) // 2],
        "/bomb.png": bomb,
        "/page.jpg": b"<!doctype html>",
        "/tiny.png": picture(7, (4, 4)),
        "/corrupt.png": bytes(corrupt),
        "/vector.svg": b"<svg/>",
    }
    site.answers.update({path: reply(body) for path, body in bodies.items()})
    site.answers["/far.png"] = reply(status="302 Found", Location="http://169.254.169.254/latest/meta-data/")
    site.answers["/short.png"] = reply(picture(8)[:50], length=400)
    paths = [*bodies, "/far.png", "/short.png", "/gone.png"]
    urls = [f"http://{HOST}{path}" for path in paths] + ["file:///etc/passwd", "http://127.0.0.1:1/x"]
    links = publish_links(str(tmp_path), urls)
    # the guard's exception is for the test's server; a literal loopback address in a URL meets the port rule
    version = download(str(tmp_path), links, config(site))
    table = version.read()
    assert table.schema.equals(IMAGES)
    assert table["url"].to_pylist() == urls[:4]
    for row, path in zip(table.to_pylist(), paths[:4], strict=True):
        assert row["image_sha256"] == hashlib.sha256(bodies[path]).hexdigest()
        assert (row["original_width"], row["original_height"]) == (96, 64)
        assert (row["stored_width"], row["stored_height"], row["image_format"]) == (32, 32, "png")
        with Image.open(io.BytesIO(row["image"])) as image:
            assert image.size == (32, 32) and image.format == "PNG"
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
        site.answers[f"/{number}.png"] = late(picture(number)) if number % 5 else reply(status="500 No")
        urls.append(f"http://{HOST}/{number}.png")
    lake = str(tmp_path)
    links = publish_links(lake, urls)
    first = download(lake, links, config(site, threads=16), "one")
    second = download(lake, links, config(site, threads=3), "two")
    assert first.shards == second.shards and first.rejects == second.rejects
    assert first.rows == 32 and first.manifest.rejects_by_reason == {"http_500": 8}
    cut = download(lake, publish_links(lake, urls, shard_rows=17), config(site, threads=7), "three", rows=6)
    assert cut.read().equals(first.read())


@pytest.mark.parametrize(("encode_format", "quality"), [("jpg", 95), ("webp", 90), ("png", 0)])
def test_size_mode_and_format_are_settings(tmp_path: Path, site: Site, encode_format: str, quality: int) -> None:
    site.answers["/a.png"] = reply(picture(1, (200, 100)))
    site.answers["/small.png"] = reply(picture(1, (40, 20)))
    links = publish_links(str(tmp_path), [f"http://{HOST}/a.png", f"http://{HOST}/small.png"])
    settings = config(
        site, resize_mode="keep_ratio", image_size=50, encode_format=encode_format, encode_quality=quality
    )
    rows = download(str(tmp_path), links, settings).read().to_pylist()
    assert [(row["stored_width"], row["stored_height"]) for row in rows] == [(100, 50), (40, 20)]  # never enlarged
    with Image.open(io.BytesIO(rows[0]["image"])) as image:
        assert image.format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[encode_format]


def test_all_links_dead_is_an_empty_result_with_reasons_not_a_failure(tmp_path: Path, site: Site) -> None:
    links = publish_links(str(tmp_path), [f"http://{HOST}/{i}" for i in range(3)])
    version = download(str(tmp_path), links, config(site))
    assert version.rows == 0 and version.manifest.rejects_by_reason == {"http_404": 3}


def test_img2dataset_itself_is_left_as_it_is(tmp_path: Path, site: Site) -> None:
    import img2dataset.downloader as theirs

    before = theirs.download_image_with_retry, theirs.Downloader.download_shard
    site.answers["/a.png"] = reply(picture(1))
    download(str(tmp_path), publish_links(str(tmp_path), [f"http://{HOST}/a.png"]), config(site))
    assert (theirs.download_image_with_retry, theirs.Downloader.download_shard) == before
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    site.answers["/a.png"] = reply(picture(1))
    download(str(tmp_path), publish_links(str(tmp_path), [f"http://{HOST}/a.png"]), config(site))
    assert list(scratch.iterdir()) == []
