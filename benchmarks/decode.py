"""Decode, resize to 256 pixels and encode: the decoder of a download, the bare OpenCV pipeline, and simplejpeg.

    python -m benchmarks.decode [--sides 300 640 800 1024 2048 4000] [--seconds 4]
    python -m benchmarks.decode --agreement

Images like photographs, 4:3, in one process without a network. `bare` decodes at the reduced scale that the decoder
chooses, resizes and encodes, and checks nothing. `simplejpeg` (libjpeg-turbo without OpenCV, not a dependency: skipped
where it is not installed) decodes at its own scale, 3/8 and 5/8 among them. `same` is whether it stores the same
pixels as the decoder does.

`--agreement` compares what the decoder stores with the area average of the full decode, on the photographs that
scikit-learn and Gradio bring, by how many times the target the scaled decode is: dB (PSNR), and how sharp it is
compared with that average (root of the mean square of differences between neighbours).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
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
        image = _resized(
            image, 1 if min(image.shape[:2]) == min(read_header(body).height, read_header(body).width) else 2
        )
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


def agreement() -> None:
    """Print how well scaled decodes agree with full ones."""
    print(f"{'times the target':18}{'resized by':12}{'dB':>6}{'least dB':>10}{'sharpness':>11}")
    for ratio in (1.1, 1.17, 1.25, 1.5, 1.75, 1.99):
        found = [_compared(photo, ratio) for photo in _photographs()]
        decibels, sharpness = zip(*found, strict=True)
        mean = statistics.mean(decibels)
        print(
            f"{ratio:<18}{interpolation(2, ratio):12}{mean:6.1f}{min(decibels):10.1f}{statistics.mean(sharpness):11.2f}"
        )


def _photographs() -> list[Any]:
    """Return photographs of installed packages, uint8 [H, W, 3] BGR, their sides cut to multiples of 8."""
    folders = {"sklearn": "datasets/images", "gradio": "test_data"}
    roots = {name: importlib.util.find_spec(name) for name in folders}
    paths = [
        path
        for name, folder in folders.items()
        if (spec := roots[name]) is not None and spec.origin is not None
        for path in sorted(Path(spec.origin).parent.joinpath(folder).glob("*.jpg"))
    ]
    photos = [cv2.imread(str(path)) for path in paths]
    large = [photo for photo in photos if photo is not None and min(photo.shape[:2]) >= 300]
    return [photo[: photo.shape[0] // 8 * 8, : photo.shape[1] // 8 * 8] for photo in large]


def _compared(photo: Any, ratio: float) -> tuple[float, float]:
    """Return dB and sharpness of a scaled decode that is `ratio` times the target, against the full one's average."""
    body = bytes(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])
    target = int(-(-min(photo.shape[:2]) // 2) / ratio)
    settings = {**SETTINGS, "image_size": target, "encode_format": "png", "encode_quality": 1}
    scaled, full = (
        _pixels(Decoder(semantic(DownloadConfig(**settings, scaled_decode=scales)))(body)[TELL.size :]).astype(float)  # type: ignore[arg-type]
        for scales in (True, False)
    )
    decibels = 10 * np.log10(255**2 / np.mean((scaled - full) ** 2))
    return float(decibels), _sharpness(scaled) / _sharpness(full)


def _sharpness(image: Any) -> float:
    return float(np.sqrt(np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[300, 640, 800, 1024, 2048, 4000])
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU-seconds per program and side")
    parser.add_argument("--agreement", action="store_true", help="compare scaled decodes with full ones instead")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.agreement:
        return agreement()
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
