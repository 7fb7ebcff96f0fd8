"""Encode: images -> latents and token ids.

A picture's shorter side is resized to the resolution (bilinear, antialiased), a square is cut out at a keyed place,
and the VAE's latent is stored, scaled by its factor: the distribution's mean (`mode`) or a keyed sample of it. Crop
and noise depend on (seed, sample_id) alone; the VAE always sees a full micro-batch. So a row's latent does not
depend on its unit, neighbours or order. Text is stored as token ids: the encoder's output would be
ten times the latent.

Shapes: B pictures, R resolution in pixels, C x H x W latent.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.assets import check_folder
from altdiffusion.curation.config import EncodeConfig
from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import plan_ranges, read_range
from altdiffusion.records import LATENTS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Unit, UnitRecord

LATENT_SAMPLE = 16
"""Stream of the noise in a sampled latent (`diffusion.noise` has the others)."""


def plan_encode(images: Version, rows_per_unit: int, *models: str) -> list[Unit]:
    """Units of an images version; `models` are the digests of the VAE and the tokenizer."""
    return plan_ranges(images, rows_per_unit, *models)


class EncodeWork:
    """Works a row range of images."""

    def __init__(self, *, lake: str, dataset: str, config: EncodeConfig) -> None:
        self.lake, self.dataset, self.config = lake, dataset, config
        self._versions: dict[str, Version] = {}
        self._encoder: LatentEncoder | None = None
        self._tokenizer: Any = None

    def setup(self) -> None:
        """Loads the VAE and the tokenizer."""
        from transformers import AutoTokenizer

        self._encoder = LatentEncoder(self.config)
        folder = check_folder(self.config.tokenizer, self.config.tokenizer_digest)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def run(self, unit: Unit) -> UnitRecord:
        """Encodes and writes one unit; pictures smaller than the resolution are rejected, never enlarged."""
        if self._encoder is None:
            raise RuntimeError("setup() has not been called")
        images = read_range(self.lake, unit, self._versions)
        short = pc.min_element_wise(images["stored_width"], images["stored_height"]).to_numpy(zero_copy_only=False)
        large = np.asarray(short >= self.config.resolution)
        dropped = np.flatnonzero(~large)
        gone, kept = images.take(pa.array(dropped)), images.filter(pa.array(large))
        rejects = rejects_table(
            unit.id,
            row=dropped,
            reason=["resolution"] * len(dropped),
            sample_id=gone["sample_id"],
            url=gone["url"],
            language=gone["language"],
            detail=[f"{side} px" for side in short[dropped].tolist()],
        )
        return finish_unit(
            Lake(self.lake).dataset(self.dataset),
            unit,
            rows_in=images.num_rows,
            accepted=[self._encode(kept)],
            rejects=rejects,
        )

    def _encode(self, images: pa.Table) -> pa.Table:
        if self._encoder is None:
            raise RuntimeError("setup() has not been called")
        sample_ids = images["sample_id"].to_numpy()
        latents, crops = self._encoder.encode(images["image"], sample_ids)
        count = len(latents)
        channels, high, wide = latents.shape[1:] if count else (0, 0, 0)
        columns: dict[str, Any] = {name: images[name] for name in ("sample_id", "image_sha256", "caption", "language")}
        columns["latent"] = pa.array([latent.tobytes() for latent in latents], pa.binary())
        for name, value in (("channels", channels), ("height", high), ("width", wide)):
            columns[name] = pa.array(np.full(count, value, np.int16))
        columns["resolution"] = pa.array(np.full(count, self.config.resolution, np.int32))
        columns["crop_top"], columns["crop_left"] = pa.array(crops[:, 0]), pa.array(crops[:, 1])
        columns["token_ids"] = token_ids(self._tokenizer, images["caption"].to_pylist(), self.config.max_length)
        columns["aesthetic"] = pc.coalesce(images["aesthetic_score"], images["aesthetic"])
        return pa.table([columns[field.name] for field in LATENTS], schema=LATENTS)


class LatentEncoder:
    """The VAE's encoder with its keyed crop."""

    def __init__(self, config: EncodeConfig) -> None:
        import torch
        from diffusers import AutoencoderKL

        folder = check_folder(config.vae, config.vae_digest)
        self.config = config
        self._torch = torch
        self._device = torch.device(config.device)
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        self._vae: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._vae.to(self._device, self._dtype).eval()
        shift = self._vae.config.shift_factor
        self._shift, self._scale = float(shift or 0.0), float(self._vae.config.scaling_factor)

    def encode(
        self, bodies: pa.ChunkedArray, sample_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]]:
        """Encoded pictures and their row ids -> latents float16 [B, C, H, W] and crops int32 [B, 2] (top, left)."""
        from altdiffusion.diffusion.noise import CROP, keyed_uniform

        torch, config = self._torch, self.config
        ids = torch.from_numpy(np.array(sample_ids, np.int64))
        latents, crops = [], np.zeros((len(sample_ids), 2), np.int32)
        for start in range(0, len(sample_ids), config.micro_batch):
            stop = min(start + config.micro_batch, len(sample_ids))
            places = keyed_uniform(config.seed, ids[start:stop], CROP, (2,)).numpy()
            pixels = np.zeros((config.micro_batch, 3, config.resolution, config.resolution), np.float32)
            for at, body in enumerate(bodies.slice(start, stop - start).to_pylist()):
                pixels[at], crops[start + at] = square(body, config.resolution, places[at])
            latents.append(self._latents(torch.from_numpy(pixels), ids[start:stop]))
        if not latents:
            return np.zeros((0, 0, 0, 0), np.float16), crops
        return np.concatenate(latents).astype("<f2"), crops

    def _latents(self, pixels: Any, ids: Any) -> npt.NDArray[np.float16]:
        from altdiffusion.diffusion.noise import keyed_normal

        torch = self._torch
        with torch.inference_mode():
            found = self._vae.encode(pixels.to(self._device, self._dtype)).latent_dist
            mean = found.mean[: len(ids)].float().cpu()
            if self.config.latent == "sample":
                noise = keyed_normal(self.config.seed, ids, LATENT_SAMPLE, tuple(mean.shape[1:]))
                mean = mean + found.std[: len(ids)].float().cpu() * noise
            scaled = (mean - self._shift) * self._scale
        if not bool(torch.isfinite(scaled).all()):
            raise AltDiffusionError("autoencoder", "made a latent that is not finite", "use float32, or another VAE")
        half: npt.NDArray[np.float16] = scaled.numpy().astype(np.float16)
        return half


def square(
    body: bytes, resolution: int, place: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """An encoded picture -> float32 [3, R, R] in -1..1 and (top, left) of the square in the resized picture.

    `place` is two numbers in [0, 1): where along the free vertical and horizontal pixels the square lies.
    """
    from PIL import Image

    with Image.open(io.BytesIO(body)) as image:
        rgb = image.convert("RGB")
    scale = resolution / min(rgb.size)
    wide, high = (max(resolution, round(length * scale)) for length in rgb.size)
    if (wide, high) != rgb.size:
        rgb = rgb.resize((wide, high), Image.Resampling.BILINEAR)
    top, left = int(place[0] * (high - resolution + 1)), int(place[1] * (wide - resolution + 1))
    cut = np.asarray(rgb.crop((left, top, left + resolution, top + resolution)), np.float32)
    return (cut / 127.5 - 1.0).transpose(2, 0, 1), (top, left)


def token_ids(tokenizer: Any, captions: list[str], max_length: int) -> pa.Array:
    """Token ids of each caption, padded and truncated to `max_length`; list<int32>.

    Raises:
        AltDiffusionError: a caption still holds the tab that published data puts before a language code.
    """
    leaking = next((caption for caption in captions if "\t" in caption), None)
    if leaking is not None:
        raise AltDiffusionError(
            f"caption {leaking[:80]!r}",
            "holds a tab: a language suffix would reach the text encoder",
            "run select again: it removes such suffixes",
        )
    if not captions:
        return pa.array([], pa.list_(pa.int32()))
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=max_length)["input_ids"]
    if any(len(row) != max_length for row in ids):
        raise AltDiffusionError(
            f"tokenizer {tokenizer.name_or_path}", f"does not pad to {max_length}", "give it a padding token"
        )
    return pa.array(ids, pa.list_(pa.int32()))
