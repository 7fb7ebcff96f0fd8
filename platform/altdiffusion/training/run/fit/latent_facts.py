"""What a dataset of latents states of itself, and which autoencoder made it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from altdiffusion.diffusion.autoencoder import Autoencoder, load_autoencoder, noted
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.shard_reader import ShardReader, naming_shard
from altdiffusion.training.run.fit.facts import Facts


def check_halves(sides: tuple[int, int], halvings: int | None, place: str) -> None:
    """Refuse latents whose sides (height, width) a UNet cannot halve as often as it does."""
    if halvings is not None and any(side % 2**halvings for side in sides):
        raise AltDiffusionError(
            place,
            f"gives latents of {sides[1]} x {sides[0]}, which the base's UNet cannot halve {halvings} times",
            f"take sides of latents that are multiples of {2**halvings}",
        )


def first_row(version: Version) -> tuple[int, int, int, int]:
    """Return (channels, height, width, token ids) of a version's first row."""
    uri = version.shard_uri(0)
    with naming_shard(uri):
        reader = ShardReader(uri, version.shards[0].bytes)
        names = ["channels", "height", "width", "token_ids"]
        row = reader.read(0, names, rows=np.zeros(1, np.int64)).to_pylist()[0]
        reader.close()
    return int(row["channels"]), int(row["height"]), int(row["width"]), len(row["token_ids"])


def state_autoencoders(base: str, versions: Sequence[Version], lake: str, facts: Facts) -> None:
    """State what made the latents, where it is not the base's own VAE by its folder's digest.

    Raises:
        AltDiffusionError: another one made them, or it is not known which.
    """
    folder = files.join(base, "vae")
    digest: str | None = None
    mine: Autoencoder | None = None
    for version in versions:
        made_by = autoencoder_of(version, lake)
        if made_by is None:
            continue
        digest = digest or content_digest(folder)
        if made_by.digest == digest:
            continue
        remedy = f"encode the images with {folder}, or use the base of that autoencoder"
        theirs = noted(lake, made_by.digest)
        if theirs is None:
            raise AltDiffusionError(
                f"{version.ref.short}",
                f"has latents of {made_by.short}, and the base's VAE {folder} is {digest[:12]}",
                f"{remedy}. Where both hold the same weights, run the encode job of that dataset again: it then notes "
                "what its autoencoder is",
            )
        mine = mine or Autoencoder.of(load_autoencoder(folder))
        for place, one in (
            (f"model folder {folder}", mine),
            (f"{made_by.short}, which made {version.ref.short}", theirs),
        ):
            facts.state("latent channels", one.latent_channels, place, remedy)
            facts.state("scaling of latents", one.scaling_factor, place, remedy)
            facts.state("shift of latents", one.shift_factor, place, remedy)
            facts.state("encoder of the VAE (SHA-256)", one.encoder, place, remedy)


def autoencoder_of(version: Version, lake: str) -> Ref | None:
    """Return the autoencoder that made a version's latents, or the version that it was derived from; None if no
    manifest names it."""
    manifest = version.manifest
    if "encode" in manifest.config:
        return next((ref for ref in manifest.parent_refs if ref.kind == "model"), None)
    for ref in manifest.parent_refs:
        if ref.kind == "dataset":
            parent = Lake(lake).version(ref)
            if parent.manifest.kind == "latents":
                return autoencoder_of(parent, lake)
    return None
