"""Conversion of pixels in a file's own colours to sRGB, by Little CMS (Pillow's ImageCms), perceptual intent.

A profile is tried once on a grid of colours. If it changes none by more than one level of 255, it is sRGB under
another name, and its images are left alone. Grey is converted by a table. A grey image with a profile of RGB is one
whose red, green and blue are equal, as in browsers.

Shapes: H rows, W columns.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from altdiffusion.curation.images.profile import ColorTag, read_profile

Pixels = npt.NDArray[np.uint8]
Profiled = Literal["same", "converted", "broken", "oversized", "mismatch", "unsupported"]
"""What became of the colours that a file states. same: they are sRGB. converted. Ignored, and the numbers taken for
sRGB's: broken; oversized; mismatch, a profile for another kind of pixels than the file's; unsupported, HDR."""
PROFILED: tuple[Profiled, ...] = get_args(Profiled)
Mode = Literal["L", "RGB", "CMYK"]
_KEPT = 16  # profiles
_GRID = 9
_FAR = 40
"""Levels of 255: a curve further from sRGB's than this makes averages of coded values too wrong for a scaled decode."""


class Converter:
    """A converter of one profile's pixels to sRGB's."""

    def __init__(self, profile: bytes, mode: Mode) -> None:
        """Make the transform.

        Raises:
            ImageCms.PyCMSError, OSError: Little CMS cannot use the profile.
            _Mismatch: it is for pixels of another kind.
        """
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        coded = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
        if coded is None or (coded != mode and (mode, coded) != ("L", "RGB")):
            raise _Mismatch
        self._transform: Any = ImageCms.buildTransform(opened, _srgb(), coded, "RGB")
        self._ramp: Pixels | None = None
        grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        if coded == "CMYK":
            self.same = self.far = False
            return
        ramp = self._through(grey[..., 0] if coded == "L" else grey)[:, 0]
        if mode == "L":
            spread = int((ramp.max(axis=1) - ramp.min(axis=1)).max())
            self._ramp = ramp[:, 1] if spread <= 1 else np.ascontiguousarray(ramp[:, ::-1])
            changed = np.abs(ramp.astype(int) - grey[:, 0])
        else:
            changed = np.abs(self._through(_grid()).astype(int) - _grid())
        self.same = bool(changed.max() <= 1)
        self.far = bool(np.abs(ramp.astype(int) - grey[:, 0]).max() > _FAR)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Convert [H, W] grey, [H, W, 3] BGR or [H, W, 4] CMYK to [H, W] or [H, W, 3] BGR."""
        if self._ramp is not None:
            return self._ramp[pixels]
        rgb = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels
        return self._through(np.ascontiguousarray(rgb))[..., ::-1]

    def _through(self, pixels: Pixels) -> Pixels:
        """Convert [H, W] grey, [H, W, 3] RGB or [H, W, 4] CMYK to [H, W, 3] RGB."""
        mode = {2: "L", 3: "RGB", 4: "CMYK"}[2 if pixels.ndim == 2 else pixels.shape[2]]
        image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
        return np.asarray(ImageCms.applyTransform(image, self._transform))


class _Mismatch(Exception):
    """The profile is for pixels of another kind."""


class Converters:
    """The converters of the profiles that came last, up to `_KEPT`."""

    def __init__(self) -> None:
        self._of = functools.lru_cache(maxsize=_KEPT)(_converter)

    def of(self, body: bytes, tag: ColorTag | None, mode: Mode) -> tuple[Converter | None, Profiled | None]:
        """Return the converter of a file's pixels (None where nothing is to be converted), and what the file states."""
        if tag is None:
            return None, None
        profile = read_profile(body, tag)
        if profile is None or profile in PROFILED:
            return None, "same" if profile is None else profile  # type: ignore[return-value]
        return self._of(profile, mode)  # type: ignore[arg-type]


def _converter(profile: bytes, mode: Mode) -> tuple[Converter | None, Profiled]:
    try:
        converter = Converter(profile, mode)
    except _Mismatch:
        return None, "mismatch"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None, "broken"
    return (None, "same") if converter.same else (converter, "converted")


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image in CIELAB (D50), which names colours without a profile."""
    converted: Any = ImageCms.applyTransform(image, _of_lab())
    return converted  # type: ignore[no-any-return]


@functools.cache
def _of_lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


@functools.cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@functools.cache
def _grid() -> Pixels:
    """Return [_GRID^3, 1, 3] colours over the whole cube."""
    steps = np.rint(np.linspace(0, 255, _GRID)).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 1, 3)
