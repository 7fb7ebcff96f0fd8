"""From encoded images to the pixels that an autoencoder sees: decode, resize, crop at a keyed offset.

Curation, which stores latents, and training, which may compute them in the loop, share this module, so that both see
the same pixels.

Shapes: a crop has W x H pixels.
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

_ADDRESS = re.compile(
    r" at 0x[0-9a-f]+"
)  # an object's address in a message would make each run's rejects a different file


class Unreadable(Exception):
    """An image that cannot be decoded; the text is the reason, and is the same in every run."""


def open_rgb(body: bytes) -> Image:
    """Return an encoded image as RGB, completely decoded.

    Raises:
        Unreadable: the decoder refuses the image, for any reason.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything: OSError, ValueError, SyntaxError, struct.error, ...
        raise Unreadable(_ADDRESS.sub("", f"{type(error).__name__}: {error}")[:200]) from error


def offsets(seed: int, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the relative crop offset of each image, independent of its size: float32 [images, 2] in [0, 1)."""
    import torch  # takes seconds, which planning a job need not wait for

    from altdiffusion.diffusion.noise import CROP, keyed_uniform

    drawn: npt.NDArray[np.float32] = keyed_uniform(seed, torch.tensor(keys), CROP, (2,)).numpy()
    return drawn


def crop(rgb: Image, size: Size, offset: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Return the crop of an image, uint8 [H, W, 3], and its (top, left) within the resized image.

    The image is resized (bilinear, antialiased) until it just covers W x H, and then cropped.

    Args:
        offset: two numbers in [0, 1): the position of the crop along the free vertical and horizontal pixels.
    """
    from PIL import Image as Pillow

    width, height = size
    scale = max(width / rgb.size[0], height / rgb.size[1])
    wide, high = max(width, round(rgb.size[0] * scale)), max(height, round(rgb.size[1] * scale))
    if (wide, high) != rgb.size:
        rgb = rgb.resize((wide, high), Pillow.Resampling.BILINEAR)
    top, left = int(offset[0] * (high - height + 1)), int(offset[1] * (wide - width + 1))
    return np.asarray(rgb.crop((left, top, left + width, top + height))), (top, left)
