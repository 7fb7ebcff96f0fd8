"""The square of an image that CLIP sees, and the statistics that its values are normalised by.

Preprocessing is that of openai/CLIP (`clip.py`, `_transform`) as transformers' `CLIPImageProcessor` computes it:
shorter side to S (bicubic), centre square, values 0 to 1, normalised per channel.

Shapes: S side of CLIP's input in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

# Mean and standard deviation of CLIP's training images (openai/CLIP, clip.py), RGB, of values 0 to 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_square(rgb: Image, side: int) -> npt.NDArray[np.uint8]:
    """Return the square that CLIP sees: uint8 [S, S, 3]."""
    from PIL import Image as Pillow

    short = min(rgb.size)
    wide, high = (side if length == short else side * length // short for length in rgb.size)
    if (wide, high) != rgb.size:
        rgb = rgb.resize((wide, high), Pillow.Resampling.BICUBIC)
    left, top = (wide - side) // 2, (high - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)))
