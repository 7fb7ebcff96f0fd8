"""From encoded images to the pixels that an autoencoder sees: decode, resize, cut out at a keyed place.

Shared by curation, which stores latents, and by training, which may make them in the loop: both see the same pixels.

Shapes: W x H pixels of what is cut out.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height, pixels."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, in a message: it would make each run's rejects another file


class Unreadable(Exception):
    """An image that cannot be decoded; its text says why, the same at every run."""


def open_rgb(body: bytes) -> Image:
    """An encoded image, decoded whole, as RGB.

    Raises:
        Unreadable: whatever the decoder found wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error, ...
        raise Unreadable(_ADDRESS.sub("", f"{type(error).__name__}: {error}")[:200]) from error


def places(seed: int, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Where each image is cut, whatever its size: float32 [images, 2] in [0, 1)."""
    import torch  # seconds, which planning a job need not wait for

    from altdiffusion.diffusion.noise import CROP, keyed_uniform

    found: npt.NDArray[np.float32] = keyed_uniform(seed, torch.tensor(keys), CROP, (2,)).numpy()
    return found


def cut(rgb: Image, size: Size, place: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """An image -> uint8 [H, W, 3] and (top, left) of what was cut out of the resized image.

    The image is resized (bilinear, antialiased) until it just covers W x H, and cut. `place` is two numbers in
    [0, 1): where along the free vertical and horizontal pixels the cut lies.
    """
    from PIL import Image as Pillow

    width, height = size
    scale = max(width / rgb.size[0], height / rgb.size[1])
    wide, high = max(width, round(rgb.size[0] * scale)), max(height, round(rgb.size[1] * scale))
    if (wide, high) != rgb.size:
        rgb = rgb.resize((wide, high), Pillow.Resampling.BILINEAR)
    top, left = int(place[0] * (high - height + 1)), int(place[1] * (wide - width + 1))
    return np.asarray(rgb.crop((left, top, left + width, top + height))), (top, left)
