"""Latents of mirrored images beside the latents of the images: which of the two a sample is, a keyed coin says.

A VAE's encoder is not symmetric: the latent of a mirrored image is not the mirrored latent. So the encode job writes
both (`mirrored: true`), row by row beside each other, and a sample takes its row from one of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from altdiffusion.diffusion.noise import MIRROR, keyed_uniform
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Version
from altdiffusion.training.order.permutation import I64


def mirrored_at(seed: int, positions: I64, probability: float) -> npt.NDArray[np.bool_]:
    """Whether the samples at these positions are mirrored: uniform(seed, position) < probability, bool [K]."""
    drawn = keyed_uniform(seed, torch.from_numpy(np.ascontiguousarray(positions)), MIRROR)
    found: npt.NDArray[np.bool_] = (drawn < probability).numpy()
    return found


def check_twins(version: Version, twin: Version) -> None:
    """Refuses a dataset of mirrored latents that was not made beside the other: rows would be of other images.

    Latents are a function of parents and config, so equal parents and configs (but for `mirrored`) and equal shards'
    rows mean the same images row by row.
    """
    one, other = version.manifest, twin.manifest
    plain = {key: value for key, value in other.config.items() if key != "mirrored"}
    beside = other.config.get("mirrored") is True and dict(one.config) == plain and one.parents == other.parents
    if not beside or [shard.rows for shard in version.shards] != [shard.rows for shard in twin.shards]:
        raise AltDiffusionError(
            twin.ref.short,
            f"is not the mirrored one of {version.ref.short}",
            "make both with one run of the encode job with `mirrored: true`",
        )
