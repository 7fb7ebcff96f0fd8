"""The decoder: a process that turns one image after the other into the file that is stored.

    python -m altdiffusion.curation.images.decoder_process FD SETTINGS

FD is a socket inherited from the worker (`decoder_pool`), SETTINGS is JSON. Codecs are the part of a crawler that
hostile bytes reach deepest, so they run here: what crashes, hangs or eats memory ends this process and costs one row.
The process has no file, no other connection and no secret, can get none (`confinement`), and its memory is limited.

An image is decoded, converted to sRGB, laid on white and turned upright, in this order. Then img2dataset's Resizer
resizes and encodes it. Nothing but pixels remains of the file that came: no EXIF, no profile, no comment, no bytes
behind the end.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import cv2
import numpy as np

from altdiffusion.curation.images.color import PROFILED, Converter, Converters, Mode, lab_to_srgb
from altdiffusion.curation.images.confinement import confine
from altdiffusion.curation.images.decode_guard import read_header
from altdiffusion.curation.images.decoder_messages import ASK, DONE, READY, REFUSED, TELL
from altdiffusion.curation.images.header import Header
from altdiffusion.curation.images.resizer import PixelResizer
from altdiffusion.curation.images.transforms import Pixels
from altdiffusion.curation.rejects import DECODE, MEMORY_LIMIT, Refused
from altdiffusion.image_files.phash import phash

Choose = Callable[[Mode], Converter | None]

_REDUCED = {
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
}
_CUBIC_BELOW, _LINEAR_TO = 1.25, 1.5
"""How a scaled decode is resized that has this many times the pixels of a side that are wanted. Hardly larger ones come
out softer by linear interpolation than by area averaging of the full decode, and as sharp by cubic interpolation. Then
linear interpolation comes within 1 dB of area averaging, for a fifth of its time; above 1.5 the gap widens."""
_BAND_ROWS = 256
_CHANGES_VIEW = ("center_crop", "border")
_GRACE_S = 5.0


def scale(header: Header, target: int, *, of_long_side: bool, margin: float = 1.0) -> tuple[int, float]:
    """Return how a JPEG is decoded that will be resized to `target` pixels.

    That is the divisor of its sides (1, 2, 4 or 8), and how many times the target it is then: more than the margin
    where the divisor is not 1.
    """
    side = max(header.width, header.height) if of_long_side else min(header.width, header.height)
    divisors = (8, 4, 2) if header.format == "jpg" and header.plain else ()
    divisor = next((divisor for divisor in divisors if -(-side // divisor) > target * margin), 1)
    return divisor, -(-side // divisor) / target


def interpolation(divisor: int, ratio: float) -> Literal["area", "linear", "cubic"]:
    """Return how an image is made smaller that was decoded at 1/`divisor` and is now `ratio` times the target."""
    if divisor == 1 or ratio > _LINEAR_TO:
        return "area"
    return "linear" if ratio >= _CUBIC_BELOW else "cubic"


def pixels(body: bytes, header: Header, divisor: int = 1, choose: Choose = lambda _: None) -> Pixels:
    """Return the image upright on white: uint8 [H, W] or [H, W, 3] BGR, its sides divided by `divisor` and rounded up.

    Args:
        choose: returns the converter to sRGB for grey, RGB or CMYK, which is applied before colours are mixed with
            white or with each other; None where they are sRGB's.

    Raises:
        Refused: decode.
    """
    if header.plain:
        read = _by_opencv(body, header, divisor)
        alpha, turn = _alpha(read, header), header.orientation
        if read.ndim == 3:
            read = read[..., 0] if header.grey else read[..., :3]
        coded = _eight_bits(read) if read.dtype == np.uint16 else read
        return _turned(_shown(coded, alpha, choose("L" if coded.ndim == 2 else "RGB")), turn)
    with _opened(body, header) as image:
        converter = choose("CMYK") if image.mode == "CMYK" else None
        coded, alpha = _channels(image.convert("RGB") if image.mode == "CMYK" and converter is None else image)
        if header.grey and coded.ndim == 3:
            coded = coded[..., 0]
        if image.mode not in ("CMYK", "LAB"):
            converter = choose("L" if coded.ndim == 2 else "RGB")
        turn = int(image.getexif().get(274, 1)) if header.format == "avif" else header.orientation
    return _turned(_shown(coded, alpha, converter), turn)


def _by_opencv(body: bytes, header: Header, divisor: int) -> Any:
    flags = cv2.IMREAD_UNCHANGED
    if divisor > 1:
        flags = _REDUCED[divisor][header.grey] | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(_still(body) if header.animated else body, np.uint8), flags)
    if image is None:
        raise Refused(DECODE, "OpenCV cannot read it")
    return image


def _still(png: bytes) -> bytes:
    """Return an animated PNG without its animation: only the default image is left."""
    kept, at = [png[:8]], 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind not in (b"acTL", b"fcTL", b"fdAT"):
            kept.append(png[at : at + 12 + length])
        if kind == b"IEND":
            break
        at += 12 + length
    return b"".join(kept)


def _eight_bits(deep: Any) -> Pixels:
    """Return 16 bits as 8, rounded (libpng's `png_set_scale_16`)."""
    out = np.empty(deep.shape, np.uint8)
    for start in range(0, len(deep), _BAND_ROWS):
        band = deep[start : start + _BAND_ROWS].astype(np.uint32)
        out[start : start + _BAND_ROWS] = (band * 255 + 32895) >> 16
    return out


def _alpha(coded: Any, header: Header) -> Pixels | None:
    """Return [H, W] opacity of what OpenCV decoded, 8 or 16 bits: a channel, or all but PNG's transparent colour."""
    if header.key is not None:
        channels = coded[..., None] if coded.ndim == 2 else coded[..., 2::-1]
        shift = 255 // ((1 << header.depth) - 1) if header.depth < 8 else 1
        clear = np.ones(coded.shape[:2], bool)
        for number, value in enumerate(header.key):
            clear &= channels[..., number] == value * shift
        return np.where(clear, np.uint8(0), np.uint8(255))
    if coded.ndim == 3 and coded.shape[2] == 4:
        return _eight_bits(coded[..., 3]) if coded.dtype == np.uint16 else coded[..., 3]
    return None


def _shown(coded: Pixels, alpha: Pixels | None, converter: Converter | None) -> Pixels:
    """Convert colours to sRGB and lay them on white, band by band, so that the arithmetic needs little memory."""
    if alpha is not None and not _lets_through(alpha):
        alpha = None
    if alpha is None and converter is None:
        return coded if coded.flags.c_contiguous else np.ascontiguousarray(coded)
    out: Pixels | None = None
    for start in range(0, len(coded), _BAND_ROWS):
        rows = slice(start, start + _BAND_ROWS)
        band = coded[rows] if converter is None else converter(coded[rows])
        if out is None:
            out = np.empty((len(coded), *band.shape[1:]), np.uint8)
        if alpha is None:
            out[rows] = band
        else:
            _lay_on_white(band, alpha[rows] if band.ndim == 2 else alpha[rows][..., None], out[rows])
    assert out is not None  # an image has rows
    return out


def _lets_through(alpha: Pixels) -> bool:
    return bool(alpha.min() < 255)


def _lay_on_white(color: Pixels, alpha: Pixels, into: Pixels) -> None:
    # 255 - (255 - c) a / 255, the division rounded: (x + 128 + (x + 128 >> 8)) >> 8 for x up to 255^2
    shade = np.multiply(~color, alpha, dtype=np.uint16)
    shade += 128
    shade += shade >> 8
    shade >>= 8
    np.subtract(255, shade, out=into, casting="unsafe")


def _turned(image: Pixels, orientation: int) -> Pixels:
    """Turn an image as EXIF's orientation states that it is to be shown (TIFF 6.0, tag 274)."""
    turned: Any = image
    if orientation in (2, 4, 5, 7):
        turned = cv2.flip(turned, 1)
    if orientation in (3, 4):
        turned = cv2.rotate(turned, cv2.ROTATE_180)
    elif orientation in (6, 7):
        turned = cv2.rotate(turned, cv2.ROTATE_90_CLOCKWISE)
    elif orientation in (5, 8):
        turned = cv2.rotate(turned, cv2.ROTATE_90_COUNTERCLOCKWISE)
    upright: Pixels = turned
    return upright


@contextlib.contextmanager
def _opened(body: bytes, header: Header) -> Iterator[Any]:
    """Open by Pillow what OpenCV does not read, or does not read correctly: the first frame."""
    from PIL import AvifImagePlugin, Image

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.MAX_IMAGE_PIXELS = None  # the header has been judged
    try:
        with Image.open(io.BytesIO(body), formats=(_PILLOW[header.format],)) as image:
            if image.width * image.height > header.width * header.height:
                raise Refused(DECODE, "larger than its header says")
            image.load()  # which turns a TIFF
            yield image
    except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise Refused(DECODE, str(error)[:200]) from error


_PILLOW: dict[str, str] = {"jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "avif": "AVIF", "bmp": "BMP", "tiff": "TIFF"}


def _channels(image: Any) -> tuple[Pixels, Pixels | None]:
    """Return [H, W] grey, [H, W, 3] BGR or [H, W, 4] CMYK, as coded; and [H, W] opacity, if the file has any."""
    if image.mode == "F":
        raise Refused(DECODE, "floating-point samples, whose white is not stated")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise Refused(DECODE, "more than 16 bits of a sample")
        white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
        return _eight_bits(65535 - deep.astype(np.int64) if white_is_zero else deep), None
    if image.mode == "LAB":
        return np.asarray(lab_to_srgb(image))[..., ::-1], None
    if image.mode == "LA":
        both = np.asarray(image)
        return both[..., 0], both[..., 1]
    if image.mode in ("RGBA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., 2::-1], rgba[..., 3]
    if image.mode in ("L", "CMYK"):
        return np.asarray(image), None
    if image.mode == "1":
        return np.asarray(image.convert("L")), None
    return np.asarray(image.convert("RGB"))[..., ::-1], None


class Decoder:
    """One body in, one answer out. `settings`: image_size, resize_mode, resize_only_if_bigger, encode_format,
    encode_quality, scaled_decode, scaled_decode_margin and color_space of a StoreConfig."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._target = int(settings["image_size"])
        self._scales = settings["scaled_decode"] and settings["resize_mode"] != "no"
        self._margin = float(settings["scaled_decode_margin"])
        self._of_long_side = settings["resize_mode"] in ("border", "keep_ratio_largest")
        self._changes_view = settings["resize_mode"] in _CHANGES_VIEW
        names = ("image_size", "resize_mode", "resize_only_if_bigger", "encode_format", "encode_quality")
        given = {name: settings[name] for name in names}
        self._whole = PixelResizer(**given)
        ways = ("area", "linear", "cubic")
        self._scaled = {way: PixelResizer(**given, downscale_interpolation=way) for way in ways}
        self._converts = settings["color_space"] == "srgb"
        self._converters = Converters()

    def __call__(self, body: bytes) -> bytes:
        """Return the answer to a body, framed."""
        try:
            return self._answer(body)
        except Refused as refused:
            return _refusal(refused.reason, refused.detail)
        except MemoryError as error:
            return _refusal(MEMORY_LIMIT, str(error))

    def _answer(self, body: bytes) -> bytes:
        header = read_header(body)
        upright, whole, profiled = (0, 0), 0, None

        def choose(mode: Mode) -> Converter | None:
            nonlocal profiled
            if not self._converts:
                return None
            converter, profiled = self._converters.of(body, header.tag, mode)
            return converter

        def decoded() -> Pixels:
            nonlocal upright, whole
            image = pixels(body, header, divisor, choose)
            upright = (image.shape[1], image.shape[0]) if divisor == 1 else _upright(header)
            whole = phash(image) if self._changes_view else 0
            return image

        resizer, divisor = self._way(header, choose)
        with _codec_errors():
            encoded, resized = resizer.resize(decoded())
            stored = phash(resized)
        if not self._changes_view:
            whole = stored
        sides = (resized.shape[1], resized.shape[0], *upright)
        number = 0 if profiled is None else 1 + PROFILED.index(profiled)
        return TELL.pack(DONE, *sides, stored, whole, number, len(encoded)) + encoded

    def _way(self, header: Header, choose: Choose) -> tuple[PixelResizer, int]:
        """Return what resizes the image, and the divisor of the sides that it is decoded at."""
        if self._scales and header.format == "jpg" and header.plain:
            converter = choose("L" if header.grey else "RGB")
            if converter is None or not converter.far:
                divisor, ratio = scale(header, self._target, of_long_side=self._of_long_side, margin=self._margin)
                if divisor > 1:
                    return self._scaled[interpolation(divisor, ratio)], divisor
        return self._whole, 1


def _upright(header: Header) -> tuple[int, int]:
    """Return width and height of the image as it is shown."""
    sides = (header.width, header.height)
    return sides if header.orientation < 5 else sides[::-1]


@contextlib.contextmanager
def _codec_errors() -> Iterator[None]:
    """Turn what codecs and arithmetic raise into a refusal, and what speaks of memory into a MemoryError."""
    try:
        yield
    except (Refused, MemoryError):
        raise
    except Exception as error:
        text = str(error)
        raise (MemoryError(text) if _is_memory(text) else Refused(DECODE, text)) from error


def _refusal(reason: str, detail: str) -> bytes:
    text = f"{reason}\n{' '.join(detail.split())[:200]}".encode()
    return TELL.pack(REFUSED, 0, 0, 0, 0, 0, 0, 0, len(text)) + text


def _is_memory(error: str) -> bool:
    """Return whether the text of an exception speaks of memory: OpenCV's, NumPy's, or Python's empty one."""
    return "Insufficient memory" in error or "Unable to allocate" in error or not error


def serve(sock: socket.socket, settings: dict[str, Any]) -> None:
    """Answer one request after the other until the worker closes the connection or is gone."""
    cv2.setNumThreads(1)
    decoder = Decoder(settings)
    limit = _address_space() + (int(settings["decoder_memory_mib"]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    ends_s = float(settings["decode_timeout_s"]) + _GRACE_S
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    gc.freeze()  # the modules' objects need not be examined at every collection
    sock.sendall(TELL.pack(READY, confine(), 0, 0, 0, 0, 0, 0, 0))
    while len(head := sock.recv(ASK.size, socket.MSG_WAITALL)) == ASK.size:
        (length,) = ASK.unpack(head)
        body = sock.recv(length, socket.MSG_WAITALL)
        if len(body) != length:
            return
        signal.setitimer(signal.ITIMER_REAL, ends_s)  # ends this process where its worker is gone
        answer = decoder(body)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sock.sendall(answer)


def _address_space() -> int:
    """Return how many bytes of address space this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Run the command line."""
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as sock:
        serve(sock, json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
