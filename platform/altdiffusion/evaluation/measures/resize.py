"""Resizing of images to the square that a feature network reads. FID depends on it, so each way has a name.

- `clean`: Pillow's bicubic filter with antialiasing on each channel in float32, clipped to 0 to 255 (Parmar, Zhang,
  Zhu: "On aliased resizing and surprising subtleties in GAN evaluation", 2022).
- `tf-bilinear`: TensorFlow 1's bilinear interpolation without antialiasing, whose pixel i reads at i * input /
  output, as in the original FID and in the network file of StyleGAN. It shifts images by up to half a pixel.
- `torch-bilinear`: the same with pixel centres, at (i + 0.5) * input / output - 0.5, as in pytorch-fid.

The aspect ratio is not kept, as in all of these. Shapes: H x W image, S side of the square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["clean", "tf-bilinear", "torch-bilinear"]
Planes = NDArray[np.float32]


def resized(rgb: Image, side: int, way: Resize) -> Planes:
    """Return an RGB image as the square of a network: float32 [3, S, S], values 0 to 255."""
    if way == "clean":
        return _clean(rgb, side)
    planes = np.asarray(rgb, np.float32).transpose(2, 0, 1)
    centre = 0.0 if way == "tf-bilinear" else 0.5
    return _bilinear(_bilinear(planes, side, centre).transpose(0, 2, 1), side, centre).transpose(0, 2, 1)


def _clean(rgb: Image, side: int) -> Planes:
    from PIL import Image as Pillow

    channels = [Pillow.fromarray(np.asarray(channel, np.float32)) for channel in rgb.split()]
    made = [np.asarray(channel.resize((side, side), Pillow.Resampling.BICUBIC)) for channel in channels]
    return np.stack(made).clip(0, 255)


def _bilinear(values: Planes, size: int, centre: float) -> Planes:
    """Return values [..., n] interpolated to [..., size]; pixel i is at i + centre."""
    count = values.shape[-1]
    place = np.clip((np.arange(size) + centre) * (count / size) - centre, 0, count - 1)
    left = np.floor(place).astype(np.int64)
    right = np.minimum(left + 1, count - 1)
    share = (place - left).astype(np.float32)
    result: Planes = values[..., left] * (1 - share) + values[..., right] * share
    return result
