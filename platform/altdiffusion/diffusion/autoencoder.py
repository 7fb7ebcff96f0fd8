"""The identity of an autoencoder: two folders that make equal latents have equal identities.

Latents depend on the encoder and the scaling, not on the decoder (Stable Diffusion's fine-tuned `sd-vae-ft-mse` has
the encoder of the original). A folder's digest is too strict for this: stock diffusers writes the same weights under
another config.json. So the encode job writes a note of the autoencoder that made its latents, named by the digest of
the folder, and a run that trains on these latents compares the note with its base.

    <lake>/autoencoders/<digest of the folder>.json

A note does not enter any digest. The same encode command writes it again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import local_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.weight_files import load_network
from altdiffusion.storage import files
from altdiffusion.storage.documents import read_document

NOTES = "autoencoders"


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Everything that a latent depends on."""

    encoder: str
    """SHA-256 (hex) over names, shapes and float32 values of the encoder's tensors."""
    latent_channels: int
    scaling_factor: float
    shift_factor: float

    @classmethod
    def of(cls, vae: Any) -> Autoencoder:
        """Return the identity of an `AutoencoderKL` on any device."""
        digest = hashlib.sha256()
        for name, tensor in sorted(vae.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                value = tensor.detach().to("cpu", torch.float32).contiguous()
                digest.update(f"{name}{tuple(value.shape)}".encode())
                digest.update(value.numpy().tobytes())
        return cls(
            encoder=digest.hexdigest(),
            latent_channels=int(vae.config.latent_channels),
            scaling_factor=float(vae.config.scaling_factor),
            shift_factor=float(vae.config.shift_factor or 0.0),
        )

    def note(self, lake: str, folder_digest: str) -> None:
        """Write the note that the folder with this digest is this autoencoder, unless the note exists."""
        uri = _note_uri(lake, folder_digest)
        if not files.exists(uri):
            files.write_atomic(uri, files.canonical_json(asdict(self)))


def load_autoencoder(folder: str | Path, **given: Any) -> Any:
    """Return the `AutoencoderKL` of a folder in evaluation mode; its weights are exactly those of its config.

    Args:
        given: further arguments of `from_pretrained`.

    Raises:
        AltDiffusionError: it cannot be opened, or a key is missing or unused.
    """
    quiet_libraries()
    from diffusers import AutoencoderKL

    with local_folder(folder) as local:
        return load_network(
            AutoencoderKL, local, f"autoencoder {folder}", remedy="give an AutoencoderKL as published", **given
        )


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return images, float32 [N, 3, H, W] around -1..1, computed in the VAE's own dtype.

    Args:
        vae: `AutoencoderKL`, in any dtype.
        latents: float32 [N, C, h, w] as the UNet predicts them: scaled by `scaling_factor`.
    """
    dtype = next(vae.parameters()).dtype
    decoded: Tensor = vae.decode((latents / vae.config.scaling_factor).to(dtype), return_dict=False)[0]
    return decoded.float()


def decode_in_float32(vae: Any, latents: Tensor) -> Tensor:
    """Return what `decode` does, computed in float32 whatever the VAE's dtype is.

    Activations of some published VAEs exceed float16's 65,504, which gives black images (diffusers' `force_upcast`).
    Half-precision weights are converted for this call and back, which loses nothing, so no second copy stays in memory.
    No other thread may use the VAE meanwhile.
    """
    dtype = next(vae.parameters()).dtype
    try:
        return decode(vae.float(), latents)
    finally:
        vae.to(dtype)


def noted(lake: str, folder_digest: str) -> Autoencoder | None:
    """Return the autoencoder that a note gives for the folder with this digest; None where there is no note.

    Raises:
        AltDiffusionError: the note is damaged.
    """
    remedy = "remove it and run the encode job again, which writes the note of its autoencoder"
    try:
        document = read_document(_note_uri(lake, folder_digest), remedy=remedy)
    except FileNotFoundError:
        return None
    return Autoencoder(
        encoder=document.digest("encoder"),
        latent_channels=document.count("latent_channels"),
        scaling_factor=document.number("scaling_factor"),
        shift_factor=document.number("shift_factor"),
    )


def _note_uri(lake: str, folder_digest: str) -> str:
    return files.within(lake, NOTES, f"{folder_digest}.json")
