"""The decoder: a process that turns one picture after the other into the file that is stored.

    python -m altdiffusion.curation.pictures.decode FD SETTINGS

FD is a socket inherited from the worker (`decoder`), SETTINGS are JSON. Codecs are the part of a crawler that hostile
bytes reach deepest, so they run here: what crashes, hangs or eats memory takes this process with it and costs one
row. It holds no file, no other connection and no secret, and may take so much memory and no more.

A picture is decoded upright, in colour or grey, on white; img2dataset's Resizer resizes and encodes it. Nothing of
the file that came survives but its pixels: no EXIF, no comment, no bytes behind the end.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from altdiffusion.curation.download.img2dataset_part import part
from altdiffusion.curation.network.addresses import Refused
from altdiffusion.curation.pictures.decode_guard import Header, read_header
from altdiffusion.curation.pictures.phash import phash

Pixels = npt.NDArray[np.uint8]

ASK = struct.Struct(">I")
"""A request: length of the body that follows."""
TELL = struct.Struct(">BIIIIqqI")
"""An answer: status, stored width and height, original width and height, perceptual hash of the stored picture and of
the whole one, length of what follows: the stored file, or (UTF-8, one line each) reason and detail."""
DONE, REFUSED, READY = 0, 1, 2

_REDUCED = {
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
}
_MARGIN = 1.25  # a scaled decode that is hardly larger than what it is resized to comes out softer
_LINEAR_TO = 1.5
"""Up to this ratio a scaled decode is resized bilinearly: against area averaging of the full decode 36 to 48 dB, 1 dB
below area averaging of the scaled one, for a fifth of its time; above it the gap widens."""
_BAND_ROWS = 256
_CHANGES_VIEW = ("center_crop", "border")
_GRACE_S = 5.0


def scale(header: Header, target: int, *, of_long_side: bool) -> tuple[int, float]:
    """How a JPEG is decoded that will be resized to `target` pixels: divisor of its sides (1, 2, 4 or 8), and how many
    times the target it then still is. Never less than the margin where the divisor is not 1."""
    side = max(header.width, header.height) if of_long_side else min(header.width, header.height)
    divisors = (8, 4, 2) if header.format == "jpg" and header.plain else ()
    divisor = next((divisor for divisor in divisors if -(-side // divisor) > target * _MARGIN), 1)
    return divisor, -(-side // divisor) / target


def pixels(body: bytes, header: Header, divisor: int = 1) -> Pixels:
    """The picture upright on white: uint8 [H, W] or [H, W, 3] BGR, its sides divided by `divisor` and rounded up.

    Raises:
        Refused: decode.
    """
    if not header.plain:
        return _by_pillow(body, header)
    flags = cv2.IMREAD_UNCHANGED
    if divisor > 1:
        flags = _REDUCED[divisor][header.grey] | cv2.IMREAD_IGNORE_ORIENTATION
    picture: Any = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    if picture is None:
        raise Refused("decode", "OpenCV cannot read it")
    if picture.ndim == 3 and picture.shape[2] == 4:
        picture = _on_white(picture)
    return _turned(picture, header.orientation)


def _turned(picture: Pixels, orientation: int) -> Pixels:
    """As EXIF's orientation says it is to be shown (TIFF 6.0, tag 274)."""
    turned: Any = picture
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


def _on_white(picture: Pixels) -> Pixels:
    """[H, W, 4] BGRA over white: [H, W, 3]; in bands of rows, so that the arithmetic needs little memory."""
    out = np.empty((*picture.shape[:2], 3), np.uint8)
    for start in range(0, len(picture), _BAND_ROWS):
        band, into = picture[start : start + _BAND_ROWS], out[start : start + _BAND_ROWS]
        alpha = band[..., 3:]
        if alpha.min() == 255:
            into[...] = band[..., :3]
            continue
        # 255 - (255 - c) a / 255, the division rounded: (x + 128 + (x + 128 >> 8)) >> 8 for x up to 255^2
        shade = np.multiply(~band[..., :3], alpha, dtype=np.uint16)
        shade += 128
        shade += shade >> 8
        shade >>= 8
        np.subtract(255, shade, out=into, casting="unsafe")
    return out


def _by_pillow(body: bytes, header: Header) -> Pixels:
    """What OpenCV would get wrong: the first frame, 16 bits as 8, CMYK as RGB, PNG's and WebP's EXIF turn."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP", "GIF")) as image:
            if image.width * image.height > header.width * header.height:
                raise Refused("decode", "larger than its header says")
            upright: Any = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                deep = np.asarray(upright)
                upright = Image.fromarray((deep.astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = np.asarray(upright.convert("RGBA"))
                return _on_white(rgba[..., [2, 1, 0, 3]])
            return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[..., ::-1])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused("decode", str(error)[:200]) from error


class Decoder:
    """One body -> one answer. `settings`: image_size, resize_mode, resize_only_if_bigger, encode_format,
    encode_quality, scaled_decode, of a DownloadConfig."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._target = int(settings["image_size"])
        self._scales = settings["scaled_decode"] and settings["resize_mode"] != "no"
        self._of_long_side = settings["resize_mode"] in ("border", "keep_ratio_largest")
        self._changes_view = settings["resize_mode"] in _CHANGES_VIEW
        names = ("image_size", "resize_mode", "resize_only_if_bigger", "encode_format", "encode_quality")
        resizer, given = _resizer_module(self).Resizer, {name: settings[name] for name in names}
        self._area, self._linear = resizer(**given), resizer(**given, downscale_interpolation="linear")
        self._body, self._header, self._divisor = b"", Header(format="jpg", width=1, height=1, plain=True), 1
        self._upright = (0, 0)
        self._problem: BaseException | None = None
        self._stored = self._whole = 0

    def __call__(self, body: bytes) -> bytes:
        """An answer, framed."""
        try:
            self._body, self._header, self._problem = body, read_header(body), None
            resize = self._area
            if self._scales:
                self._divisor, ratio = scale(self._header, self._target, of_long_side=self._of_long_side)
                if self._divisor > 1 and ratio <= _LINEAR_TO:
                    resize = self._linear
            encoded, width, height, _, _, error = resize(io.BytesIO(body))
            if self._problem is not None:
                raise self._problem
            if error is not None:
                raise MemoryError(error) if _is_memory(error) else Refused("decode", error)
        except Refused as refused:
            return _refusal(refused.reason, refused.detail)
        except MemoryError as error:
            return _refusal("memory_limit", str(error))
        head = TELL.pack(DONE, width, height, *self._upright, self._stored, self._whole, len(encoded))
        return b"".join((head, encoded))

    # What the Resizer calls of OpenCV:

    def imdecode(self, _: Pixels, __: int) -> Pixels:
        header = self._header
        try:
            picture = pixels(self._body, header, self._divisor)
            if not header.plain:
                self._upright = (picture.shape[1], picture.shape[0])
            else:
                sides = (header.width, header.height)
                self._upright = sides if header.orientation < 5 else sides[::-1]
            self._whole = phash(picture) if self._changes_view else 0
        except (Refused, MemoryError) as error:
            self._problem = error
            raise
        return picture

    def imencode(self, extension: str, picture: Pixels, params: list[int]) -> Any:
        self._stored = phash(picture)
        if not self._changes_view:
            self._whole = self._stored
        return cv2.imencode(extension, picture, params)


def _refusal(reason: str, detail: str) -> bytes:
    text = f"{reason}\n{' '.join(detail.split())[:200]}".encode()
    return TELL.pack(REFUSED, 0, 0, 0, 0, 0, 0, len(text)) + text


def _is_memory(error: str) -> bool:
    """Whether the Resizer's text of an exception speaks of memory: OpenCV's, NumPy's, or Python's empty one."""
    return "Insufficient memory" in error or "Unable to allocate" in error or not error


def _resizer_module(decoder: Decoder) -> Any:
    """img2dataset's resizer with our decoding under the name of OpenCV's; this process's output goes nowhere anyway."""

    class _OpenCV:
        imdecode, imencode = staticmethod(decoder.imdecode), staticmethod(decoder.imencode)
        setNumThreads = staticmethod(lambda _: None)

        def __getattr__(self, name: str) -> Any:
            return getattr(cv2, name)

    module: Any = part("resizer")
    module.cv2, module.SuppressStdoutStderr = _OpenCV(), contextlib.nullcontext
    for name in ("SmallestMaxSize", "LongestMaxSize", "CenterCrop"):
        setattr(module.A, name, functools.cache(getattr(module.A, name)))  # else one is made for every picture
    return module


def serve(sock: socket.socket, settings: dict[str, Any]) -> None:
    """Answers one request after the other until the worker closes the connection or is gone."""
    cv2.setNumThreads(1)
    decoder = Decoder(settings)
    limit = _address_space() + (int(settings["decoder_memory_mib"]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ends_s = float(settings["decode_timeout_s"]) + _GRACE_S
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    gc.freeze()  # the modules' objects need not be looked at again and again
    sock.sendall(TELL.pack(READY, 0, 0, 0, 0, 0, 0, 0))
    while len(head := sock.recv(ASK.size, socket.MSG_WAITALL)) == ASK.size:
        (length,) = ASK.unpack(head)
        body = sock.recv(length, socket.MSG_WAITALL)
        if len(body) != length:
            return
        signal.setitimer(signal.ITIMER_REAL, ends_s)  # ends this process where nobody is left to end it
        answer = decoder(body)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sock.sendall(answer)


def _address_space() -> int:
    """Bytes of address space this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """The command line."""
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as sock:
        serve(sock, json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
