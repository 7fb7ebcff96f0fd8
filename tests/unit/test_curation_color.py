"""Colours that a file states become sRGB's: every format, profile, mode and opacity against Pillow and Little CMS."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.config.store import FORMATS
from altdiffusion.curation.images.color import PROFILED
from altdiffusion.curation.images.decode_guard import inspect
from altdiffusion.curation.images.decoder_messages import DONE, TELL
from altdiffusion.curation.images.decoder_process import Decoder
from tests import icc_profiles as icc
from tests.encoded_images import chunk, png_file

CONFIG = DownloadConfig(min_side=8, formats=FORMATS)
SETTINGS = {
    "image_size": 64, "resize_mode": "no", "resize_only_if_bigger": True, "encode_format": "png", "encode_quality": 1,
    "scaled_decode": True, "scaled_decode_margin": 1.0, "color_space": "srgb",
}  # fmt: skip
SRGB = ImageCms.createProfile("sRGB")
Pixels = np.ndarray[Any, Any]


def stored(body: bytes, **settings: Any) -> tuple[Pixels, str | None]:
    """Return the stored image as RGB, and what became of the colours it states; read by the header's rules first."""
    inspect(body, CONFIG)
    reply = Decoder({**SETTINGS, **settings})(body)
    head = TELL.unpack(reply[: TELL.size])
    assert head[0] == DONE, reply[TELL.size :]
    with Image.open(io.BytesIO(reply[TELL.size :])) as image:
        assert not {"icc_profile", "gamma", "chromaticity", "exif"} & set(image.info)
        return np.asarray(image.convert("RGB")), (None, *PROFILED)[head[7]]


def scene(mode: str, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Draw smooth colours over much of the gamut; opacity from none to full where the mode has it."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(float)
    x, y = x / (width - 1), y / (height - 1)
    planes = np.stack([x, y, 0.5 + 0.5 * np.sin(3 * (x + y)), (x + y) / 2], -1)
    eight = np.rint(planes * 255).astype(np.uint8)
    opacity = np.rint(np.clip(1.3 * x - 0.1, 0, 1) * 255).astype(np.uint8)
    if mode == "CMYK":
        return Image.fromarray(np.concatenate([eight[..., :3], eight[..., 3:] // 2], -1), "CMYK")
    if mode in ("L", "LA", "1"):
        grey = Image.fromarray(eight[..., 0])
        return Image.merge("LA", (grey, Image.fromarray(opacity))) if mode == "LA" else grey.convert(mode)
    rgb = Image.fromarray(eight[..., :3])
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(opacity))
    return rgb.quantize(64) if mode == "P" else rgb


def on_white(color: Image.Image, alpha: Image.Image | None) -> Pixels:
    """Return colours over white in sRGB, in full precision."""
    rgb = np.asarray(color.convert("RGB")).astype(float)
    if alpha is None:
        return rgb
    share = np.asarray(alpha).astype(float)[..., None] / 255
    return rgb * share + 255 * (1 - share)


def reference(body: bytes, profile: bytes | None) -> Pixels:
    """Return the image by Pillow and Little CMS: turned, converted, laid on white."""
    with Image.open(io.BytesIO(body)) as image:
        upright = ImageOps.exif_transpose(image)
    alpha = None
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        alpha = upright.convert("RGBA").getchannel("A")
        upright = upright.convert("L" if upright.mode == "LA" else "RGB")
    elif upright.mode in ("1", "P"):
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    if profile is None:
        return on_white(upright, alpha)
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if upright.mode == "L" and opened.profile.xcolor_space.strip() == "RGB":
        upright = upright.convert("RGB")
    return on_white(ImageCms.profileToProfile(upright, opened, SRGB, outputMode="RGB"), alpha)


def saved(image: Image.Image, format: str, profile: bytes | None, **save: Any) -> bytes:
    out = io.BytesIO()
    extra = {} if profile is None else {"icc_profile": profile}
    image.save(out, format, **extra, **save)
    return with_bmp_profile(out.getvalue(), profile) if format == "BMP" else out.getvalue()


def with_bmp_profile(body: bytes, profile: bytes | None) -> bytes:
    """Return a BITMAPV5HEADER in front of the pixels and a profile behind them, which Pillow does not write."""
    if profile is None:
        return body
    offset, size = struct.unpack_from("<II", body, 10)
    pixels = body[offset:]
    head = struct.pack("<I", 124) + body[18 : 14 + size]
    head = (
        head.ljust(56, b"\x00")
        + b"DEBM"
        + bytes(36 + 12)
        + struct.pack("<IIII", 4, 124 + len(body) - 14 - size, len(profile), 0)
    )
    palette = body[14 + size : offset]
    start = 14 + len(head) + len(palette)
    return (
        struct.pack("<2sIHHI", b"BM", start + len(pixels) + len(profile), 0, 0, start)
        + head
        + palette
        + pixels
        + profile
    )


PROFILES = {
    "none": None, "sRGB": icc.SRGB, "Adobe RGB": icc.ADOBE_RGB, "ProPhoto": icc.PROPHOTO, "Display P3": icc.DISPLAY_P3,
    "linear": icc.LINEAR, "table": icc.RGB_TABLE, "grey 2.2": icc.GRAY_22, "dot gain": icc.DOT_GAIN_20,
    "CMYK": icc.CMYK,
}  # fmt: skip
MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1"), "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"), "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"), "BMP": ("RGB", "L", "P", "1"),
    "GIF": ("RGB", "L", "P"),
}  # fmt: skip
SAVE: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 95},
}  # fmt: skip


def cases() -> Iterator[tuple[str, str, str]]:
    for format, modes in MODES.items():
        for mode, name in itertools.product(modes, PROFILES):
            grey = name in ("grey 2.2", "dot gain")
            fits = mode in ("L", "LA", "1") if grey else (mode == "CMYK") == (name == "CMYK")
            if name == "none" or (fits and format != "GIF"):
                yield format, mode, name


@pytest.mark.parametrize(("format", "mode", "name"), cases())
def test_every_format_profile_and_mode_as_pillow_and_lcms_have_it(format: str, mode: str, name: str) -> None:
    profile = PROFILES[name]
    body = saved(scene(mode), format, profile, **SAVE.get(format, {}))
    found, profiled = stored(body)
    like_srgb = name == "sRGB" or (name == "Display P3" and mode in ("L", "LA", "1"))  # the greys of both are one
    nothing = "same" if format == "AVIF" else None  # which always states what it is
    assert profiled == (nothing if profile is None else "same" if like_srgb else "converted")
    expected = reference(body, profile)
    off = np.abs(found - expected)
    # JPEG is decoded by two libraries; everything else is rounding, and steep curves multiply it
    limit = (1.0, 4.0) if format in ("JPEG", "AVIF", "WEBP") else (0.6, 2.0)
    assert off.mean() <= limit[0] and off.max() <= limit[1], (off.mean(), off.max())
    if name in ("Adobe RGB", "ProPhoto") and mode == "RGB":  # what it would be without
        raw, _ = stored(body, color_space="as_coded")
        assert np.abs(raw - expected).mean() > 5


def png(samples: Pixels, color: int, depth: int, *extra: bytes) -> bytes:
    """Return a PNG of raw samples [H, W] or [H, W, C], `extra` chunks in front of the pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        packed = rows.astype(">u2").tobytes()
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    size = len(packed) // height
    lines = b"".join(b"\x00" + packed[at : at + size] for at in range(0, len(packed), size))
    return png_file((width, height), depth, color, lines, *extra)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("profile", [None, icc.DOT_GAIN_20])
def test_a_transparent_grey_is_white_at_every_depth(depth: int, profile: bytes | None) -> None:
    most = (1 << depth) - 1
    samples = np.linspace(0, most, 24 * 16).round().astype(int).reshape(16, 24)
    key = int(samples[3, 5])
    near = samples.copy()
    near[0, 0] = max(key - 1, 0)  # in 16 bits the same high byte, and not transparent
    extra = [chunk(b"tRNS", struct.pack(">H", key))]
    if profile is not None:
        extra.insert(0, chunk(b"iCCP", b"p\x00\x00" + zlib.compress(profile)))
    found, profiled = stored(png(near, 0, depth, *extra))
    assert profiled == (None if profile is None else "converted")
    grey = Image.fromarray(np.rint(near * 255 / most).astype(np.uint8))
    if profile is not None:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        grey = ImageCms.profileToProfile(grey, opened, SRGB, outputMode="RGB")
    expected = np.asarray(grey.convert("RGB")).copy()
    expected[near == key] = 255
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_and_deep_images(depth: int) -> None:
    most = (1 << depth) - 1
    rgb = np.asarray(scene("RGB")).astype(int) * (most // 255)
    rgb[4:9, 4:9] = (most // 3, most // 5, 0)
    rgb[6, 6, 2] = 1  # the same colour but for the lowest bit
    key = chunk(b"tRNS", struct.pack(">3H", most // 3, most // 5, 0))
    found, _ = stored(png(rgb, 2, depth, key))
    expected = np.rint(rgb / most * 255)
    expected[4:9, 4:9] = 255
    expected[6, 6] = np.rint(rgb[6, 6] / most * 255)
    assert np.abs(found - expected).max() <= 1
    alpha = np.asarray(scene("RGBA").getchannel("A")).astype(int) * (most // 255)
    found, _ = stored(png(np.dstack([rgb, alpha]), 6, depth))
    share = alpha[..., None] / most
    assert np.abs(found - (rgb / most * 255 * share + 255 * (1 - share))).max() <= 1.5


def test_a_palette_with_opacities_is_laid_on_white_after_its_colours_are_converted() -> None:
    image = scene("P")
    opacity = bytes(min(4 * n, 255) for n in range(64))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc.ADOBE_RGB))
    color = ImageCms.profileToProfile(image.convert("RGB"), profile, SRGB)
    alpha = Image.fromarray(np.frombuffer(opacity, np.uint8)[np.asarray(image)])
    found, profiled = stored(saved(image, "PNG", icc.ADOBE_RGB, transparency=opacity))
    assert profiled == "converted" and np.abs(found - on_white(color, alpha)).max() <= 1.5


def test_opacity_is_applied_before_the_image_is_resized() -> None:
    """Hidden colours must not bleed into what is seen: the average of nothing and white is white."""
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., 0] = 255  # red wherever it is transparent
    rgba[:, ::2] = (0, 0, 0, 0)
    for format in ("PNG", "WEBP", "TIFF"):
        body = saved(Image.fromarray(rgba * np.array([1, 1, 1, 0], np.uint8)), format, None, **SAVE.get(format, {}))
        assert stored(body, resize_mode="keep_ratio", image_size=32)[0].min() == 255


def test_an_opaque_grey_with_opacity_stays_exact() -> None:
    found, _ = stored(saved(scene("LA"), "PNG", icc.GRAY_22))
    assert (np.ptp(found, axis=2) == 0).all()


def jpeg_pieces(profile: bytes, size: int) -> list[bytes]:
    pieces = [profile[at : at + size] for at in range(0, len(profile), size)]
    return [
        b"\xff\xe2" + struct.pack(">H", 16 + len(piece)) + b"ICC_PROFILE\x00" + bytes((number, len(pieces))) + piece
        for number, piece in enumerate(pieces, 1)
    ]


def with_segments(*segments: bytes) -> bytes:
    body = saved(scene("RGB"), "JPEG", None, quality=98, subsampling=0)
    return body[:2] + b"".join(segments) + body[2:]


def test_a_profile_in_several_segments_of_any_order_and_damaged_ones() -> None:
    pieces = jpeg_pieces(icc.PROPHOTO, 100)
    assert len(pieces) > 3
    whole, profiled = stored(with_segments(*pieces))
    assert profiled == "converted"
    turned, profiled = stored(with_segments(*pieces[::-1]))
    assert profiled == "converted" and (turned == whole).all()
    raw, profiled = stored(with_segments())
    assert profiled is None and np.abs(raw.astype(int) - whole).mean() > 5
    broken = {
        "a piece is missing": with_segments(*pieces[1:]),
        "a piece comes twice": with_segments(pieces[0], *pieces),
        "no profile": with_segments(*jpeg_pieces(bytes(3000), 60_000)),
        "no tags": with_segments(*jpeg_pieces(icc.ADOBE_RGB[:128] + bytes(4), 60_000)),
        "cut": with_segments(*jpeg_pieces(icc.ADOBE_RGB[:-200], 60_000)),
        "noise": with_segments(*jpeg_pieces(icc.ADOBE_RGB[:132] + bytes(range(256)) * 2, 60_000)),
    }
    for name, body in broken.items():
        found, profiled = stored(body)
        assert profiled == "broken" and (found == raw).all(), name
    huge = icc.ADOBE_RGB[:128].ljust(5 << 20, b"x")
    assert stored(with_segments(*jpeg_pieces(huge, 65_000)))[1] == "oversized"
    for profile in (icc.CMYK, icc.GRAY_22):
        found, profiled = stored(with_segments(*jpeg_pieces(profile, 60_000)))
        assert profiled == "mismatch" and (found == raw).all()


def test_damaged_profiles_of_png_and_webp_are_ignored() -> None:
    image = scene("RGB")
    raw, _ = stored(saved(image, "PNG", None))
    samples = np.asarray(image)
    bomb = b"p\x00\x00" + zlib.compress(bytes(64 << 20), 9)
    packed = b"p\x00\x00" + zlib.compress(icc.ADOBE_RGB)
    for data, expected in (
        (bomb, "oversized"), (packed[:-9], "broken"), (b"no zero", "broken"), (b"p\x00\x01" + packed[3:], "broken"),
    ):  # fmt: skip
        found, profiled = stored(png(samples, 2, 8, chunk(b"iCCP", data)))
        assert profiled == expected and (found == raw).all()
    body = saved(image, "WEBP", icc.ADOBE_RGB, lossless=True)
    at = body.index(b"ICCP")
    assert stored(body[: at + 8 + 36] + b"nope" + body[at + 8 + 40 :])[1] == "broken"


def srgb_coded(light: Pixels) -> Pixels:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def test_png_states_colours_without_a_profile() -> None:
    """cICP before iCCP before sRGB before gAMA and cHRM."""
    samples = np.asarray(scene("RGB"))
    raw, _ = stored(png(samples, 2, 8))
    linear, about_srgb = (chunk(b"gAMA", struct.pack(">I", value)) for value in (100_000, 45455))
    srgb = chunk(b"sRGB", b"\x00")
    p3_points = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    p3 = chunk(b"cHRM", struct.pack(">8I", *p3_points))
    srgb_points = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    packed = chunk(b"iCCP", b"p\x00\x00" + zlib.compress(icc.ADOBE_RGB))
    cicp_p3 = chunk(b"cICP", bytes((12, 13, 0, 1)))
    opened = ImageCms.ImageCmsProfile(io.BytesIO(icc.DISPLAY_P3))
    as_p3 = np.asarray(ImageCms.profileToProfile(scene("RGB"), opened, SRGB)).astype(float)
    adobe = reference(saved(scene("RGB"), "PNG", icc.ADOBE_RGB), icc.ADOBE_RGB)
    for chunks, wanted, expected, limit in (
        ([linear], "converted", srgb_coded(samples / 255), 1.0),
        ([about_srgb], "same", raw, 0),
        ([about_srgb, srgb_points], "same", raw, 0),
        ([srgb, linear], "same", raw, 0),
        ([p3], "converted", as_p3, 2.5),
        ([cicp_p3], "converted", as_p3, 2.5),
        ([cicp_p3, packed], "converted", as_p3, 2.5),
        ([packed, linear], "converted", adobe, 2.0),
        ([chunk(b"cICP", bytes((1, 13, 0, 1)))], "same", raw, 0),
        ([chunk(b"cICP", bytes((9, 16, 0, 1)))], "unsupported", raw, 0),
        ([chunk(b"gAMA", bytes(4))], "broken", raw, 0),
        ([chunk(b"cHRM", bytes(32))], "broken", raw, 0),
    ):
        found, profiled = stored(png(samples, 2, 8, *chunks))
        assert profiled == wanted and np.abs(found - expected).max() <= limit, (chunks, np.abs(found - expected).max())


@pytest.mark.parametrize("profile", [None, icc.CMYK])
def test_the_inks_of_ycck_are_those_of_cmyk(profile: bytes | None) -> None:
    """Photoshop's files: inks inverted, three of them as YCbCr, as transform 2 of the Adobe segment states."""
    inks = np.asarray(scene("CMYK"))
    plain = saved(Image.fromarray(inks, "CMYK"), "JPEG", profile, **SAVE["JPEG"])
    ycc = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    # Pillow writes 255 less each channel, and leaves the inks as they are
    ycck = saved(Image.fromarray(np.dstack([255 - ycc, inks[..., 3:]]), "CMYK"), "JPEG", profile, **SAVE["JPEG"])
    at = ycck.index(b"Adobe\x00") + 11
    ycck = ycck[:at] + b"\x02" + ycck[at + 1 :]
    first, profiled = stored(plain)
    second, _ = stored(ycck)
    assert profiled == (None if profile is None else "converted")
    off = np.abs(first.astype(int) - second)
    assert off.mean() < 2 and off.max() <= 12
    assert np.abs(first - reference(plain, profile)).mean() < 1


def test_lab_and_deep_tiffs() -> None:
    lab = Image.merge("LAB", [Image.new("L", (48, 40), value) for value in (140, 200, 60)])
    expected = ImageCms.profileToProfile(lab, ImageCms.createProfile("LAB"), SRGB, outputMode="RGB")
    found, _ = stored(saved(lab, "TIFF", None))
    assert np.abs(found - np.asarray(expected).astype(float)).max() <= 1
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(40, 48))
    found, _ = stored(saved(deep, "TIFF", None))
    assert np.abs(found[..., 0] - np.asarray(deep) / 257).max() <= 1
    found, _ = stored(saved(deep, "TIFF", None, tiffinfo={262: 0}))
    assert np.abs(found[..., 0] - (255 - np.asarray(deep) / 257)).max() <= 1


def exif_block(orientation: int, order: str, kind: int) -> bytes:
    value = struct.pack(order + {1: "Bxxx", 3: "Hxx", 4: "I", 9: "i"}[kind], orientation)
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    return mark + struct.pack(order + "IHHHI", 8, 1, 274, kind, 1) + value + bytes(4)


def with_exif(body: bytes, format: str, block: bytes) -> bytes:
    if format == "JPEG":
        return body[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\x00\x00" + block + body[2:]
    if format == "PNG":
        return body[:33] + chunk(b"eXIf", block) + body[33:]
    assert body[12:16] == b"VP8X"
    flagged = body[:20] + bytes((body[20] | 8,)) + body[21:]
    data = flagged + b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) & 1)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_turn_is_read_in_both_byte_orders_and_every_whole_type(format: str) -> None:
    body = saved(scene("RGB"), format, icc.SRGB, **SAVE.get(format, {}))
    plain, _ = stored(body)
    for order, kind in itertools.product("<>", (1, 3, 4, 9)):
        for orientation in (3, 6, 8):
            found, _ = stored(with_exif(body, format, exif_block(orientation, order, kind)))
            turned = np.rot90(plain, {3: 2, 6: -1, 8: 1}[orientation])
            assert found.shape == turned.shape and np.abs(found.astype(int) - turned).max() <= 2
        for block in (exif_block(9, order, 4), exif_block(6, order, 3)[:-9], b"XX" + exif_block(6, order, 3)[2:]):
            assert stored(with_exif(body, format, block))[0].shape == plain.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_turn_of_avif_and_tiff(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    for format in ("AVIF", "TIFF"):
        turn: dict[str, Any] = {"exif": exif} if format == "AVIF" else {"tiffinfo": {274: orientation}}
        body = saved(scene("RGB"), format, icc.ADOBE_RGB, **turn, **SAVE.get(format, {}))
        found, profiled = stored(body)
        expected = reference(body, icc.ADOBE_RGB)
        assert (
            profiled == "converted"
            and found.shape == expected.shape == ((40, 48, 3), (48, 40, 3))[orientation > 4]
            and (np.abs(found - expected).max() <= 4)
        )


def test_a_scaled_decode_is_converted_too_and_not_scaled_where_the_curve_is_another() -> None:
    draw = np.random.default_rng(1)
    coarse = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize(
        (1200, 800), Image.Resampling.BICUBIC
    )
    for profile in (icc.ADOBE_RGB, icc.LINEAR):
        body = saved(coarse, "JPEG", profile, quality=95)
        scaled, full = (
            stored(body, resize_mode="keep_ratio", image_size=256, scaled_decode=choice)[0].astype(float)
            for choice in (True, False)
        )
        assert scaled.shape == full.shape and 10 * np.log10(255**2 / max(np.mean((scaled - full) ** 2), 1e-9)) > 33
        if profile is icc.LINEAR:
            assert (scaled == full).all()
