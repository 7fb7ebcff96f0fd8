"""Headers are judged before anything is decoded."""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.config.store import FORMATS
from altdiffusion.curation.images.decode_guard import inspect, read_header
from altdiffusion.curation.rejects import Refused
from tests.encoded_images import encoded, png_file

CONFIG = DownloadConfig(min_side=8, max_aspect=20.0)


def refusal(body: bytes, config: DownloadConfig = CONFIG) -> str:
    with pytest.raises(Refused) as caught:
        inspect(body, config)
    return caught.value.reason


WHOLE = {
    "jpg": encoded("JPEG", quality=90),
    "jpg progressive": encoded("JPEG", quality=90, progressive=True),
    "png": encoded("PNG"),
    "webp": encoded("WEBP", quality=90),
    "webp lossless": encoded("WEBP", lossless=True),
    "gif": encoded("GIF"),
    "avif": encoded("AVIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "tiff packed": encoded("TIFF", compression="tiff_lzw"),
}
EVERY = replace(CONFIG, formats=FORMATS)


@pytest.mark.parametrize("name", WHOLE)
def test_format_and_size_come_from_the_header(name: str) -> None:
    header = inspect(WHOLE[name], EVERY)
    assert (header.format, header.width, header.height) == (name.split()[0], 48, 32)


def test_formats_are_read_that_the_setting_names() -> None:
    for name, body in WHOLE.items():
        if name.split()[0] in ("avif", "bmp", "tiff"):
            assert refusal(body) == "format"
    with pytest.raises(ValueError, match="at least one of jpg, png"):
        replace(CONFIG, formats=())
    assert refusal(WHOLE["gif"], replace(CONFIG, formats=("jpg", "avif"))) == "format"


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1, exclude_max=True))
def test_no_prefix_of_an_image_passes(name: str, part: float) -> None:
    body = WHOLE[name]
    cut = int(part * len(body))
    if name == "gif" and cut >= len(body) - 1:
        return  # only the trailer is missing, behind the whole first frame
    assert refusal(body[:cut], EVERY) in ("truncated", "not_image")


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8))
def test_damaged_headers_are_read_or_refused_and_nothing_else(name: str, changes: list[tuple[int, int]]) -> None:
    body = bytearray(WHOLE[name])
    for at, value in changes:
        body[at % len(body)] = value
    try:
        header = read_header(bytes(body))
    except Refused:
        return
    assert header.width >= 1 and header.height >= 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not_image"),
        (b"\xff", "not_image"),
        (bytes(1000), "not_image"),
        (b"<!doctype html><title>Sold</title>", "not_image"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><html/>", "not_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><!ENTITY x SYSTEM 'file:///etc/passwd'></svg>", "format"),
        (b"<?xml version='1.0'?><!DOCTYPE svg><svg/>", "format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "format"),
        (b"8BPS\x00\x01", "format"),
        (encoded("TIFF"), "format"),
        (encoded("BMP"), "format"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "format"),
        (b"\x00\x00\x00\x20ftypavif", "format"),
        (encoded("PNG", (4, 4)), "dims"),
        (encoded("PNG", (8, 200)), "dims"),
        (encoded("GIF", (1, 1)), "dims"),
    ],
)
def test_what_is_not_an_accepted_image(body: bytes, expected: str) -> None:
    assert refusal(body) == expected


def test_pixel_bombs_of_every_format_cost_nothing() -> None:
    jpeg = bytearray(WHOLE["jpg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    gif = bytearray(WHOLE["gif"])
    gif[6:10] = struct.pack("<HH", 65000, 65000)
    small_screen = bytearray(WHOLE["gif"])  # the screen is small, the frame is not
    frame = small_screen.index(b"\x2c", 13 + 3 * 2)
    small_screen[frame + 5 : frame + 9] = struct.pack("<HH", 65000, 65000)
    webp = bytearray(encoded("WEBP", (48, 32), "RGBA", (1, 2, 3, 4), lossless=False))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (16383 - 1).to_bytes(3, "little") * 2
    large, largest = (png_file((side, side), 8, 2, bytes(1000)) for side in (30000, 2**31 - 1))
    start = time.process_time()
    bombs = (large, largest, jpeg, gif, small_screen, webp)
    assert [refusal(bytes(bomb)) for bomb in bombs] == ["too_many_pixels"] * 6
    assert time.process_time() - start < 0.1
