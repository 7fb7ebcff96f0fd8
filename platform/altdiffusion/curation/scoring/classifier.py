"""Classifiers: a transformers image-classification folder whose probability for one label is the score.

The folder brings its own preprocessing, so its inputs are those it was trained on. The probability is what
transformers' own pipeline gives: softmax over the labels; a sigmoid where there is one label or the model states that
labels do not exclude each other.

Shapes: B images, C x H x W of the model's input, L labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from altdiffusion.curation.config import ClassifierConfig
from altdiffusion.curation.scoring.embedding import Dtype
from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from PIL.Image import Image


class Classifier:
    """A loaded classifier, asked for one label."""

    def __init__(self, config: ClassifierConfig, *, device: str, dtype: Dtype) -> None:
        """Load the model.

        Raises:
            AltDiffusionError: another folder than pinned, no classifier, or not a label of it.
        """
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from altdiffusion.diffusion.weight_files import load_network, open_stock

        quiet_libraries()
        folder = check_folder(config.folder, config.digest)
        self._folder, self._torch = config.folder, torch
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        self._processor: Any = open_stock(
            AutoImageProcessor,
            folder,
            f"model {config.folder}",
            remedy="give config.json, preprocessor_config.json and *.safetensors as save_pretrained writes them",
        )
        model = load_network(
            AutoModelForImageClassification,
            Path(folder),
            f"model {config.folder}",
            remedy="give a folder with a trained classification head, as save_pretrained writes it",
        )
        self._model: Any = model.to(self._device, self._dtype).eval().requires_grad_(False)
        labels = self._model.config.label2id
        if config.label not in labels:
            raise AltDiffusionError(
                f"model {config.folder}",
                f"has no label {config.label!r}",
                f"its labels are: {', '.join(sorted(labels))}",
            )
        self._label = int(labels[config.label])
        apart = self._model.config.problem_type == "multi_label_classification" or len(labels) == 1
        self._probabilities: Any = torch.sigmoid if apart else lambda logits: logits.softmax(dim=-1)

    def pixels(self, rgb: Image) -> npt.NDArray[np.float32]:
        """Return what a batch is made of: float32 [C, H, W], the same for every image."""
        made: npt.NDArray[np.float32] = self._processor(rgb, return_tensors="np")["pixel_values"][0]
        return made.astype(np.float32, copy=False)

    def score(self, pixels: npt.NDArray[np.float32]) -> Any:
        """Return the scores of a batch, float32 [B, C, H, W]: float32 tensor [B], 0 to 1, on the device.

        Raises:
            AltDiffusionError: a score is not finite.
        """
        torch = self._torch
        with torch.inference_mode():
            planes = torch.from_numpy(pixels).to(self._device, self._dtype)
            scores = self._probabilities(self._model(pixel_values=planes).logits.float())[:, self._label]
            if not bool(torch.isfinite(scores).all()):
                raise AltDiffusionError(
                    f"model {self._folder}", "made a score that is not finite", "use bfloat16 or float32"
                )
            return scores
