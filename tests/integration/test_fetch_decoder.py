"""Decoder processes: whatever an image does to one costs that row, and nothing of what came survives but pixels."""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from altdiffusion.config import semantic
from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.images import decoder_pool
from altdiffusion.curation.images.confinement import landlock_version
from altdiffusion.curation.images.decoder_messages import DONE, TELL
from altdiffusion.curation.images.decoder_pool import DecoderPool
from altdiffusion.curation.images.decoder_process import Decoder
from altdiffusion.curation.rejects import Refused
from altdiffusion.errors import AltDiffusionError
from tests.download_lake import HOST, config, download, image, publish_links
from tests.encoded_images import png_file
from tests.fetch_server import Site, reply, serving
from tests.fuzz.targets import image_seeds

BAD = (sys.executable, str(Path(__file__).parents[1] / "bad_decoder.py"))


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "COMMAND", BAD)


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(DownloadConfig(image_size=32, decode_timeout_s=60.0))
    yield made
    made.close()


def refusal(pool: DecoderPool, body: bytes) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        pool.decode(body)
    return caught.value.reason, caught.value.detail


def wide_png(width: int, height: int) -> bytes:
    """Return a valid grey PNG of one colour: large only when it is decoded."""

    return png_file((width, height), 8, 6, (b"\0" + b"\x40\x80\xc0\xff" * width) * height)


def test_a_crash_a_hang_and_a_memory_hog_cost_one_row_each(tmp_path: Path, site: Site, faulty: None) -> None:
    bodies = {f"/{number}.png": image(number) for number in range(12)}
    bodies["/3.png"] += b"SEGV"
    bodies["/6.png"] += b"HANG"
    bodies["/7.png"] += b"SLEEP"
    bodies["/9.png"] = wide_png(6000, 6000)
    bodies["/10.png"] += b"KILL:%s\0" % str(tmp_path / "killed").encode()
    site.answers.update({path: reply(body) for path, body in bodies.items()})
    links = publish_links(str(tmp_path), [f"http://{HOST}{path}" for path in bodies])
    settings = config(site, decode_timeout_s=3.0, decoder_memory_mib=64, decoders=2, max_pixels=1 << 26)
    start = time.monotonic()
    version = download(str(tmp_path), links, settings)
    assert time.monotonic() - start < 300
    rejects = {
        row["row"]: (row["reason"], row["detail"]) for table in version.iter_rejects() for row in table.to_pylist()
    }
    assert rejects == {
        3: ("decoder_crash", "SIGSEGV"),
        6: ("decode_timeout", "more than 3 s"),
        7: ("decode_timeout", "more than 3 s"),
        9: ("memory_limit", "more than 64 MiB"),
    }
    assert version.rows == 8 and (tmp_path / "killed").exists()


def test_a_crash_is_tried_exactly_twice(faulty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = DecoderPool(DownloadConfig(image_size=32))
    try:
        good = pool.decode(image(1))
        starts: list[int] = []
        start = decoder_pool._Decoder._start
        monkeypatch.setattr(decoder_pool._Decoder, "_start", lambda self: starts.append(1) or start(self))
        assert refusal(pool, image(2) + b"SEGV") == ("decoder_crash", "SIGSEGV")
        assert len(starts) == 1  # the first try was in the process that ran already
        assert pool.decode(image(1)) == good
        assert len(starts) == 2
    finally:
        pool.close()


def test_a_decode_that_really_takes_too_long_is_a_timeout(pool: DecoderPool) -> None:
    slow = DecoderPool(DownloadConfig(image_size=32, decode_timeout_s=0.15))
    body = wide_png(7000, 7000)
    try:
        slow.decode(image(1))
        assert refusal(slow, body)[0] == "decode_timeout"
        assert slow.decode(image(1)).width == 48
    finally:
        slow.close()
    assert pool.decode(body).width == 32


def test_the_largest_images_fit_into_the_default_memory() -> None:
    side = 8191  # just below the default's pixels
    bodies = [wide_png(side, side)]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("CMYK", "JPEG", {"quality": 40}),
        ("RGB", "JPEG", {"quality": 40, "progressive": True}),
        ("RGBA", "WEBP", {"quality": 10, "method": 0}),
        ("P", "GIF", {}),
    ]
    for mode, format, save in kinds:
        out = io.BytesIO()
        Image.new(mode, (side, side), (10, 200, 30, 4)[: len(mode)] if mode != "P" else 7).save(out, format, **save)
        bodies.append(out.getvalue())
    large = DecoderPool(DownloadConfig(image_size=4096, decode_timeout_s=120.0))
    try:
        for body in bodies:
            assert large.decode(body).original_width == side
    finally:
        large.close()


def children() -> set[psutil.Process]:
    """Return the children of this process, which runs other tests as well: compare with those before."""
    return set(psutil.Process().children())


def test_decoders_end_with_their_worker_and_are_replaced_when_killed(pool: DecoderPool) -> None:
    before = children()
    first = pool.decode(image(1))
    (process,) = children() - before
    process.send_signal(signal.SIGKILL)
    assert pool.decode(image(1)) == first
    (process,) = children() - before - {process}
    pool.close()
    assert not process.is_running()
    assert pool.decode(image(1)) == first  # a new one starts


def test_a_decoder_has_no_secret_and_no_connection_of_the_worker(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    before = children()
    inside = DecoderPool(DownloadConfig(image_size=32))
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        inside.decode(image(1))
        (process,) = children() - before
        assert "canary" not in str(process.environ())
        assert not process.net_connections("inet")
        opened = {os.readlink(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")}
        assert len([name for name in opened if name.startswith("socket:")]) == 1
        assert all(name.startswith(("socket:", "/dev/null")) for name in opened)
    finally:
        inside.close()
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_a_decoder_that_was_taken_over_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decoder_pool, "COMMAND", (sys.executable, str(Path(__file__).parents[1] / "hostile_decoder.py"))
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    secret = tmp_path / "credentials"
    secret.write_text("canary")
    hostile = DecoderPool(DownloadConfig(image_size=32))
    refused = "PermissionError"
    expected = {
        "secrets": "none", f"read {secret}": refused, "environ": refused, "read /etc/passwd": refused,
        f"list {tmp_path}": refused, "list /proc": refused, f"write {tmp_path}/new": refused,
        "write /dev/null": refused, f"remove {secret}": refused, "socket": refused, "unix": refused, "run": refused,
        "fork": refused, "kill": refused, "memory": "errno 1", "ptrace": "errno 1", "pidfd": "errno 1",
        "io_uring": "errno 1", "core": "(0, 0)", "import xmlrpc.client": "<module", "thread": "ran",
    }  # fmt: skip
    try:
        assert refusal(hostile, b"TRY:thread") == ("decode", "ran")
        outcomes = {
            attack: refusal(hostile, b"TRY:" + attack.encode())[1][: len(want)] for attack, want in expected.items()
        }
        assert outcomes == expected
        assert secret.read_text() == "canary"
        assert refusal(hostile, b"TRY:abort") == ("decoder_crash", "SIGABRT")  # it ends as it would without limits
    finally:
        hostile.close()


def test_what_a_decoder_gave_up_changes_no_image() -> None:
    """Modules that are needed late are found, and no codec needs a file: every format is as in an open process."""
    settings = DownloadConfig(image_size=32, formats=("jpg", "png", "webp", "gif", "avif", "bmp", "tiff"))
    confined, open_one = DecoderPool(settings), Decoder(semantic(settings))
    try:
        for body in image_seeds():
            answer = open_one(body)
            assert TELL.unpack(answer[: TELL.size])[0] == DONE
            assert confined.decode(body).body == answer[TELL.size :]
    finally:
        confined.close()


def test_a_decoder_that_does_not_start_reports_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "COMMAND", (*BAD, "fail"))
    with pytest.raises(AltDiffusionError, match=r"decoder process.*libGL"):
        DecoderPool(DownloadConfig()).decode(image(1))


def test_a_unit_whose_decoder_does_not_start_fails_as_a_whole(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool, "COMMAND", (*BAD, "fail"))
    for number in range(40):
        site.answers[f"/{number}.png"] = reply(image(number))
    links = publish_links(str(tmp_path), [f"http://{HOST}/{number}.png" for number in range(40)])
    with pytest.raises(AltDiffusionError, match="decoder process"):
        download(str(tmp_path), links, config(site, decoders=3))
    ends = time.monotonic() + 60
    while any(thread.name.startswith(("settle", "fetch-")) for thread in threading.enumerate()):
        assert time.monotonic() < ends, "a thread waits for rows that never come"
        time.sleep(0.05)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("run.sh", "#!/bin/sh\necho CANARY\n")
    return out.getvalue()


def png_with_text(text: bytes) -> bytes:
    body = image(1)
    chunk = b"tEXt" + b"Comment\0" + text
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return body[:33] + packed + body[33:]


HTML = b"<html><script>alert('CANARY')</script></html>"
PDF = b"%PDF-1.4 CANARY\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
_GIF = image(3, format="GIF")
POLYGLOTS: dict[str, bytes] = {
    "jpeg + zip": image(1, format="JPEG") + zipped(),
    "jpeg + pdf": image(1, format="JPEG") + PDF,
    "jpeg with html in its comment": image(1, format="JPEG", comment=HTML),
    "jpeg with exif": image(1, format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + HTML),
    "gif + html": _GIF + HTML,
    "gif with html in its comment": image(3, format="GIF", comment=HTML),
    "gif that is javascript": _GIF[:6] + _GIF[6:] + b"/*CANARY*/=1;alert('CANARY')",
    "png + html": image(2) + HTML,
    "png with text": png_with_text(HTML),
    "webp + pdf": image(4, format="WEBP") + PDF,
    "webp with xmp": image(4, format="WEBP", xmp=HTML),
}  # fmt: skip


@pytest.mark.parametrize("encode_format", ["jpg", "png", "webp"])
def test_what_is_stored_holds_no_byte_of_a_polyglots_other_half(tmp_path: Path, site: Site, encode_format: str) -> None:
    for number, body in enumerate(POLYGLOTS.values()):
        assert b"CANARY" in body or b"PK\x03\x04" in body
        site.answers[f"/{number}"] = reply(body, Content_Type="text/html")
    links = publish_links(str(tmp_path), [f"http://{HOST}/{number}" for number in range(len(POLYGLOTS))])
    # the images are smaller than image_size: even what is not resized is encoded again
    settings = config(site, image_size=512, encode_format=encode_format, encode_quality=9)
    rows = download(str(tmp_path), links, settings).read().to_pylist()
    assert len(rows) == len(POLYGLOTS)
    for row, (name, body) in zip(rows, POLYGLOTS.items(), strict=True):
        for foreign in (b"CANARY", b"script", b"PK\x03\x04", b"%PDF", b"Exif", b"XMP"):
            assert foreign not in row["image"], name
        with Image.open(io.BytesIO(row["image"])) as stored, Image.open(io.BytesIO(body)) as came:
            assert stored.size == came.size
            stored.verify()


@pytest.mark.parametrize(
    "body",
    [HTML, b"GIF89a" + HTML, PDF + image(1), zipped() + image(1), b"<svg>" + image(1, format="JPEG")],
)
def test_what_begins_as_something_else_is_not_an_image(pool: DecoderPool, body: bytes) -> None:
    reason, _ = refusal(pool, body)
    assert reason in ("not_image", "format", "truncated", "too_many_pixels", "dims")


def test_a_decoder_that_hangs_ends_itself_when_its_worker_is_gone(tmp_path: Path) -> None:
    """The worker is killed while its decoder loops: only the decoder can end itself."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, threading, time\n"
        "from altdiffusion.curation.images import decoder_pool\n"
        "from altdiffusion.curation.config import DownloadConfig\n"
        f"decoder_pool.COMMAND = {BAD!r}\n"
        "pool = decoder_pool.DecoderPool(DownloadConfig(image_size=32, decode_timeout_s=1.0))\n"
        "body = open(sys.argv[1], 'rb').read()\n"
        "pool.decode(body)\n"
        "threading.Thread(target=pool.decode, args=(body + b'HANG',), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(pool._all[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "image").write_bytes(image(1))
    worker: Any = psutil.Popen([sys.executable, str(script), str(tmp_path / "image")], stdout=-1, env=_environment())
    pid = int(worker.stdout.readline())
    worker.wait(60)
    assert psutil.pid_exists(pid)
    ends = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends, "the decoder runs on"
        time.sleep(0.2)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
