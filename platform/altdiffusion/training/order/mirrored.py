"""Mirrored latents: the latents of mirrored images, and which samples are taken from them.

A VAE's encoder is not symmetric: the latent of a mirrored image is not the mirrored latent. So the encode job writes
two datasets with equal rows (`mirrored: true`). A keyed coin decides from which of them a sample takes its row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Version
from altdiffusion.training.order.permutation import I64


def mirrored_at(seed: int, positions: I64, probability: float) -> npt.NDArray[np.bool_]:
    """Return which samples are mirrored, bool [K] of int64 [K] positions: uniform(seed, position) < probability."""
    import torch  # here, so that questions about checkpoints do not wait a second for it

    from altdiffusion.diffusion.noise import MIRROR, keyed_uniform

    drawn = keyed_uniform(seed, torch.from_numpy(np.ascontiguousarray(positions)), MIRROR)
    found: npt.NDArray[np.bool_] = (drawn < probability).numpy()
    return found


def check_mirrored(version: Version, mirrored: Version) -> None:
    """Refuse a dataset of mirrored latents that was not made together with the other: its rows would be other images.

    Latents are a function of parents and config, so equal parents, equal configs (but for `mirrored`) and equal rows
    per shard mean the same images row by row.

    Raises:
        AltDiffusionError: it is another dataset's.
    """
    one, other = version.manifest, mirrored.manifest
    plain = {key: value for key, value in other.config.items() if key != "mirrored"}
    together = other.config.get("mirrored") is True and dict(one.config) == plain and one.parents == other.parents
    if not together or [shard.rows for shard in version.shards] != [shard.rows for shard in mirrored.shards]:
        raise AltDiffusionError(
            mirrored.ref.short,
            f"is not the mirrored one of {version.ref.short}",
            "make both with one run of the encode job with `mirrored: true`",
        )
