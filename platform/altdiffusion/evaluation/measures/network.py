"""The feature network of FID, KID and the Inception Score, as published: a TorchScript file, pinned by its SHA-256.

TorchScript is code, so a file of other bytes than pinned is never opened. The published `inception-2015-12-05.pt`
(NVIDIA, StyleGAN2-ADA and later) holds the weights of the TensorFlow network that FID was defined with, reads values
0 to 255 and resizes what is not 299 pixels wide; the images that it gets here already are.

Shapes: B images, S side, F features, C classes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.diffusion.pinned_files import read_pinned
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.evaluation.measures.resize import Planes
from altdiffusion.evaluation.measures.settings import NetworkConfig

Floats = NDArray[np.float32]


class FeatureNetwork:
    """A loaded feature network; always float32."""

    def __init__(self, config: NetworkConfig, *, device: str) -> None:
        """Load the network.

        Raises:
            AltDiffusionError: the file is missing, has other bytes than pinned, or is not TorchScript.
        """
        import torch

        self._torch, self._config, self._device = torch, config, torch.device(device)
        data = read_pinned(config.file, config.sha256)
        try:
            self._network: Any = torch.jit.load(io.BytesIO(data), map_location=self._device).eval()
        except Exception as error:  # RuntimeError with a C++ trace, or what unpickling raises
            raise self._wrong(f"cannot be opened as TorchScript ({first_line(error)})") from error

    def features(self, planes: Planes) -> Floats:
        """Return the features of images, float32 [B, 3, S, S] of values 0 to 255: [B, F].

        Raises:
            AltDiffusionError: it gives another number of features than configured, or values that are not finite.
        """
        given = {"return_features": True} if self._config.form == "stylegan" else {}
        made = self._run(planes, given)
        if made.shape != (len(planes), self._config.width):
            raise self._wrong(f"gives features {list(made.shape[1:])}, and width is {self._config.width}")
        return made

    def probabilities(self, planes: Planes) -> Floats:
        """Return the class probabilities of images, float32 [B, 3, S, S] of values 0 to 255: [B, C].

        Raises:
            AltDiffusionError: the rows do not sum to 1.
        """
        made = self._run(planes, {"no_output_bias": True})
        if made.ndim != 2 or (made < 0).any() or not np.allclose(made.sum(axis=1), 1, atol=1e-3):
            raise self._wrong("does not give class probabilities, which are at least 0 and sum to 1")
        return made

    def _run(self, planes: Planes, given: dict[str, bool]) -> Floats:
        try:
            with self._torch.inference_mode():
                made = self._network(self._torch.from_numpy(planes).to(self._device), **given)
                values: Floats = made.float().cpu().numpy()
        except self._torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            asked = ", ".join(f"{name}={value}" for name, value in given.items()) or "images alone"
            raise self._wrong(f"does not run with {asked} ({first_line(error)})") from error
        if not np.isfinite(values).all():
            raise self._wrong("gives values that are not finite")
        return values

    def _wrong(self, problem: str) -> AltDiffusionError:
        remedy = "give the published inception-2015-12-05.pt, or set form, side and width as the file is"
        return AltDiffusionError(f"feature network {self._config.file}", problem, remedy)
