"""The answers of the demo's web: a pure function from host and path to a reply, planted faults included.

Hosts end in `.example` (reserved, RFC 6761), so that URLs, row ids and digests do not depend on a port. The fetch
guard gets their addresses by `connect_to(port)`.

    http://<style>.pictures.example/<language>/<variant>/<key>.<jpg|png|webp>    an image
    http://moved.pictures.example/<language>/<style>/<key>.jpg                   a redirect to an image
    http://broken.pictures.example/<fault>/<language>/<key>.jpg                  a fault of `FAULTS`
    http://gone.pictures.example/...                                             a closed port
"""

from __future__ import annotations

import functools
import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from altdiffusion.errors import AltDiffusionError
from demo import images
from demo.artists import ARTISTS, BY_NAME

MOVED = "moved.pictures.example"
BROKEN = "broken.pictures.example"
GONE = "gone.pictures.example"
_CLOSED_PORT = 1  # tcpmux, where no server listens
_SIDE = 128  # pixels, the longest side of any good image

# fault -> the reason for which the download must reject it
FAULTS: dict[str, str] = {
    "http_404": "http_404",
    "http_500": "http_500",
    "slow": "timeout",
    "endless": "too_large",
    "declared": "too_large",
    "html": "not_image",
    "random": "not_image",
    "empty": "not_image",
    "svg": "format",
    "truncated": "truncated",
    "short": "truncated",
    "bomb": "too_many_pixels",
    "tiny": "dims",
    "wide": "dims",
    "private": "blocked_address",
    "loopback": "blocked_address",
    "noai": "opt_out:x-robots-tag",
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP reply. `declared` is the Content-Length if it is not the body's.

    `manner`: "whole" sends it and keeps the connection; "close" sends it and closes; "drip" sends a byte at a time;
    "flood" sends the body again and again. The last two end when the client leaves, or after a minute.
    """

    status: int = 200
    type: str = "image/jpeg"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    manner: Literal["whole", "close", "drip", "flood"] = "whole"


def hosts() -> tuple[str, ...]:
    """Return every host that the crawl names and the server answers."""
    return (*(f"{artist.name}.pictures.example" for artist in ARTISTS), MOVED, BROKEN)


def connect_to(port: int) -> dict[str, str]:
    """Return the fetch guard's setting of this name for a server on `port`: `host:port` -> address."""
    table = {f"{host}:80": f"127.0.0.1:{port}" for host in hosts()}
    return {**table, f"{GONE}:80": f"127.0.0.1:{_CLOSED_PORT}"}


def extension(style: str, key: str) -> str:
    """Return the format an image is published in: mostly JPEG."""
    number = draw(style, key, "format") % 16
    return "png" if number < 2 else "webp" if number == 2 else "jpg"


def image_size(style: str, key: str) -> tuple[int, int]:
    """Return width and height in pixels: 96 to 128; a quarter of the images are a little wider than high."""
    side = _SIDE - 8 * (draw(style, key, "size") % 5)
    return (side, side - 8 if draw(style, key, "shape") % 4 == 0 and side > 96 else side)


@functools.lru_cache(maxsize=1024)
def image(style: str, key: str, cache: Path) -> bytes:
    """Return the encoded image: drawn on white in the middle of its canvas."""
    return _encode(style, key, cache, image_size(style, key), extension(style, key))


def answer(host: str, path: str, cache: Path) -> Reply:
    """Return the reply to `GET path` at `host`; 404 where there is nothing."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts == ["robots.txt"]:
        return Reply(type="text/plain", body=b"User-agent: *\nAllow: /\n")
    name, _, suffix = parts[-1].partition(".")
    style = host.partition(".")[0]
    try:
        if style in BY_NAME and len(parts) == 3 and suffix == extension(style, name):
            kind = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}[suffix]
            return Reply(type=kind, body=image(style, name, cache))
        if host == MOVED and len(parts) == 3 and parts[1] in images.STYLES:
            return _redirect(image_url(parts[1], name, parts[0], "moved"))
        if host == BROKEN and len(parts) == 3 and parts[0] in FAULTS:
            return _fault(parts[0], name, cache)
    except AltDiffusionError:
        pass  # no such image
    return Reply(status=404, type="text/plain", body=b"not found\n")


def image_url(style: str, key: str, language: str, variant: str) -> str:
    """Return where an image is published; each language and text variant has a URL of its own."""
    return f"http://{style}.pictures.example/{language}/{variant}/{key}.{extension(style, key)}"


def _fault(fault: str, key: str, cache: Path) -> Reply:
    jpeg = functools.partial(_encode, "noto", key, cache, extension="jpg")
    square = (_SIDE, _SIDE)
    match fault:
        case "http_500":
            return Reply(status=500, type="text/plain", body=b"try later\n")
        case "slow":
            return Reply(body=jpeg(size=square), manner="drip")
        case "endless":
            return Reply(body=bytes(1 << 16), declared=-1, manner="flood")
        case "declared":
            return Reply(body=bytes(1 << 16), declared=5 << 30, manner="flood")
        case "html":
            return Reply(type="text/html", body=b"<!doctype html><title>Sold</title><p>This domain is for sale.\n")
        case "random":
            return Reply(body=b"".join(_digest(f"{key}/random/{i}") for i in range(64)))
        case "empty":
            return Reply()
        case "svg":
            return Reply(type="image/svg+xml", body=images.svg("noto", key, cache).encode())
        case "truncated":
            whole = jpeg(size=square)
            return Reply(body=whole[: len(whole) // 2])
        case "short":
            whole = jpeg(size=square)
            return Reply(body=whole[: len(whole) // 2], declared=len(whole), manner="close")
        case "bomb":
            return Reply(type="image/png", body=bomb())
        case "tiny":
            return Reply(body=jpeg(size=(16, 16)))
        case "wide":
            return Reply(body=jpeg(size=(2048, 16)))
        case "private":
            return _redirect(f"http://10.0.0.7/{key}.jpg")
        case "loopback":
            return _redirect(f"http://127.0.0.2/{key}.jpg")
        case "noai":
            return Reply(body=jpeg(size=square), headers={"X-Robots-Tag": "noai, noimageai"})
    return Reply(status=404, type="text/plain", body=b"not found\n")


def _redirect(url: str) -> Reply:
    return Reply(status=302, type="text/plain", headers={"Location": url})


def _encode(style: str, key: str, cache: Path, size: tuple[int, int], extension: str) -> bytes:
    from PIL import Image

    width, height = size
    side = min(width, height)
    drawn = Image.fromarray(images.draw(style, key, side, cache))
    canvas = Image.new("RGB", size, "white")
    canvas.paste(drawn, ((width - side) // 2, (height - side) // 2))
    out = io.BytesIO()
    if extension == "jpg":
        canvas.save(out, "JPEG", quality=92, subsampling=0)
    elif extension == "png":
        canvas.save(out, "PNG")
    else:
        canvas.save(out, "WEBP", lossless=True)
    return out.getvalue()


@functools.lru_cache(maxsize=1)
def bomb() -> bytes:
    """Return a valid PNG of 30000 x 30000 black pixels, 1 bit each: about 110 kB to send, 900 MB decoded to bytes."""
    side = 30000
    row = bytes(1 + side // 8)

    def chunks() -> Iterator[bytes]:
        packer = zlib.compressobj(9)
        for _ in range(side // 100):
            yield packer.compress(row * 100)
        yield packer.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(chunks())) + chunk(b"IEND", b"")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def draw(*parts: object) -> int:
    """Return a keyed draw of 64 bits: the same on every machine, whatever the order of the calls."""
    return int.from_bytes(_digest("/".join(map(str, parts)))[:8], "big")
