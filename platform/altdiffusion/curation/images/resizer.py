"""img2dataset's Resizer for an image that is already decoded: its modes, its names and its arithmetic.

Three things keep a decoder from using the class as it is imported:

- `import img2dataset` loads torch, wandb, webdataset and more: 390 MB and 3.5 s of CPU for every decoder process. So
  the file of its module `resizer`, which imports nothing of the package, is loaded alone.
- That module imports albumentations for four transforms; it gets `transforms` under that name.
- The Resizer opens a file by OpenCV. A decoder has pixels instead, in sRGB, on white and upright, which it may have
  read by Pillow; and it hashes the pixels that are stored. So our copy of the module finds `_OpenCV` under the name
  `cv2`. No module that other code imports is changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from altdiffusion.curation.images import transforms
from altdiffusion.curation.images.transforms import Pixels
from altdiffusion.errors import AltDiffusionError


class PixelResizer:
    """Resizes and encodes one image at a time; `options` are those of img2dataset's Resizer.

    Raises:
        AltDiffusionError: img2dataset is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._opencv = _OpenCV()
        self._resizer = _load_module(self._opencv).Resizer(**options)

    def resize(self, image: Pixels) -> tuple[bytes, Pixels]:
        """Return the encoded file and the pixels it was encoded from.

        Args:
            image: uint8 [H, W] or [H, W, 3] BGR.

        Raises:
            RuntimeError: with the text of the exception that the Resizer has caught.
        """
        self._opencv.decoded = image
        del image  # the Resizer's is the only reference, so that the image is freed once it is resized
        encoded, *_, error = self._resizer(io.BytesIO(b"decoded already"))
        resized, self._opencv.decoded, self._opencv.encoded = self._opencv.encoded, None, None
        if error is not None:
            raise RuntimeError(error)
        return encoded, resized


class _OpenCV:
    """OpenCV as the Resizer calls it, but for the way in and the way out."""

    decoded: Any = None
    encoded: Any = None

    def imdecode(self, _: Pixels, __: int) -> Any:
        image, self.decoded = self.decoded, None
        return image

    def imencode(self, extension: str, image: Pixels, params: list[int]) -> Any:
        self.encoded = image
        return cv2.imencode(extension, image, params)

    def setNumThreads(self, _: int) -> None:
        """Do nothing: the decoder has set the number, once for all images."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)


def _load_module(opencv: _OpenCV) -> Any:
    """Load a copy of `img2dataset.resizer` that calls `opencv` and makes each transform once."""
    package = importlib.util.find_spec("img2dataset")
    if package is None or not package.submodule_search_locations:
        raise AltDiffusionError("img2dataset", "is not installed", "install the pinned version 1.47.0")
    path = Path(package.submodule_search_locations[0], "resizer.py")
    spec = importlib.util.spec_from_file_location("altdiffusion_img2dataset_resizer", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    with _named("albumentations", transforms):
        spec.loader.exec_module(module)
    module.cv2 = opencv
    module.SuppressStdoutStderr = contextlib.nullcontext  # a decoder's output goes nowhere anyway
    made_once = {name: functools.cache(getattr(transforms, name)) for name in _TRANSFORMS}
    module.A = types.SimpleNamespace(PadIfNeeded=transforms.PadIfNeeded, **made_once)
    return module


@contextlib.contextmanager
def _named(name: str, module: types.ModuleType) -> Iterator[None]:
    """Have `import name` give another module for the length of the block."""
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


_TRANSFORMS = ("SmallestMaxSize", "LongestMaxSize", "CenterCrop")
