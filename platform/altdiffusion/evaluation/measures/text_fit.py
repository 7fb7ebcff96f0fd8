"""How well images fit their texts, by the embeddings of a judge: CLIP-Sim and retrieval.

CLIP-Sim is the mean cosine of an image's and its text's embeddings (Hessel et al.: "CLIPScore: a reference-free
evaluation metric for image captioning", 2021, without its factor of 2.5 and without its clipping at 0, as in
AltDiffusion's evaluation). Retrieval R@k is the share of texts whose own image is among the k images that are nearest
to the text (Radford et al., 2021).

Shapes: n texts, each with its image; D width of the embeddings, whose rows have length 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROWS = 1024


def cosines(images: NDArray[np.floating], texts: NDArray[np.floating]) -> Array:
    """Return the cosine of each image with its own text, [n], of embeddings [n, D] each."""
    result: Array = np.einsum("nd,nd->n", np.asarray(images, np.float64), np.asarray(texts, np.float64))
    return result


def ranks(texts: NDArray[np.floating], images: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the rank of each text's own image among all n images, from 1, [n].

    An image that is as near as the own one counts as nearer, so that equal embeddings do not look like success.
    """
    texts, images = np.asarray(texts, np.float64), np.asarray(images, np.float64)
    found = []
    for start in range(0, len(texts), _ROWS):
        part = texts[start : start + _ROWS] @ images.T
        own = part[np.arange(len(part)), np.arange(start, start + len(part))]
        found.append((part >= own[:, None]).sum(axis=1))
    return np.concatenate(found) if found else np.empty(0, np.int64)
