"""Decode, resize to 256 pixels and encode: the decoder of a download, the bare OpenCV pipeline, and simplejpeg.

    python -m benchmarks.decode [--sides 300 640 1024 2048 4000] [--seconds 4]

Images like photographs, 4:3, in one process without a network. `bare` decodes at the reduced scale that the decoder
chooses, resizes and encodes, and checks nothing. `simplejpeg` (libjpeg-turbo without OpenCV, not a dependency: skipped
where it is not installed) decodes at its own scale, 3/8 and 5/8 among them. `same` is whether it stores the same
pixels as the decoder does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from altdiffusion.config import semantic
from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.images.decode_guard import read_header
from altdiffusion.curation.images.decoder_messages import TELL
from altdiffusion.curation.images.decoder_process import Decoder, interpolation, scale
from benchmarks import images
from benchmarks.download import SETTINGS

TARGET = int(SETTINGS["image_size"])  # type: ignore[call-overload]
_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_FLAGS |= {8: cv2.IMREAD_REDUCED_COLOR_8}


_WAYS = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def _resized(image: Any, divisor: int) -> Any:
    height, width = image.shape[:2]
    factor = TARGET / min(height, width)
    way = _WAYS[interpolation(divisor, 1 / factor)]
    return cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=way)


def bare(body: bytes) -> bytes:
    """Return what OpenCV alone makes of a JPEG."""
    divisor, _ = scale(read_header(body), TARGET, of_long_side=False)
    image = cv2.imdecode(np.frombuffer(body, np.uint8), _FLAGS[divisor])
    assert image is not None
    if min(image.shape[:2]) > TARGET:
        image = _resized(image, divisor)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def by_simplejpeg(body: bytes) -> bytes:
    """Return what libjpeg-turbo makes of it by its other binding."""
    import simplejpeg

    image = simplejpeg.decode_jpeg(body, colorspace="BGR", fastdct=True, fastupsample=True, min_height=TARGET,
                                   min_width=TARGET, min_factor=1)  # fmt: skip
    if min(image.shape[:2]) > TARGET:
        image = _resized(image, 1 if min(image.shape[:2]) == min(read_header(body).height, read_header(body).width) else 2)
    encoded: bytes = simplejpeg.encode_jpeg(image, quality=95, colorspace="BGR", colorsubsampling="420")
    return encoded


def rates(programs: dict[str, Callable[[bytes], Any]], bodies: list[bytes], seconds: float) -> dict[str, float]:
    """Return images per CPU-second: the median of turns, in which one program runs after the other."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    ends = time.process_time() + seconds * len(programs)
    while time.process_time() < ends or len(next(iter(found.values()))) < 3:
        for name, program in programs.items():
            start = time.process_time()
            for body in bodies:
                program(body)
            found[name].append(len(bodies) / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def _pixels(file: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[300, 640, 1024, 2048, 4000])
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU-seconds per program and side")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    decoder = Decoder(semantic(DownloadConfig(**SETTINGS)))  # type: ignore[arg-type]
    programs: dict[str, Callable[[bytes], Any]] = {"decoder": decoder, "bare": bare}
    try:
        by_simplejpeg(images.photo(0, 64, 48))
        programs["simplejpeg"] = by_simplejpeg
    except ImportError:
        pass
    print(f"{'longer side':12}{'':4}" + "".join(f"{name:>12}" for name in programs) + f"{'of bare':>9}{'same':>7}")
    for side in given.sides:
        bodies = [images.photo(number, side, side * 3 // 4) for number in range(8)]
        found = rates(programs, bodies, given.seconds)
        same = ""
        if "simplejpeg" in programs:
            stored, other = (_pixels(data) for data in (decoder(bodies[0])[TELL.size :], by_simplejpeg(bodies[0])))
            same = "yes" if stored.shape == other.shape and bool((stored == other).all()) else "no"
        line = "".join(f"{found[name]:>12.0f}" for name in programs)
        print(f"{side:<12}{'':4}{line}{found['decoder'] / found['bare']:>9.2f}{same:>7}", flush=True)


if __name__ == "__main__":
    main()
