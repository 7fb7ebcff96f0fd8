"""Drawing of images with an exported model; each image is a function of its own row alone.

Shapes: N rows of a call, B `batch_rows`, n rows of a batch, T text positions, D context width, C x H x W latent, f the
VAE's factor.

The loop is that of `StableDiffusionPipeline.__call__` without its work per image (a test checks that both are equal).
The initial noise is keyed by the row's seed. Matrix products may round differently in another batch shape, so a batch
has exactly B rows, or fewer where that is proven not to change a bit (`batch_shapes`): the last one is filled up, and a
text is encoded among B texts. Then the other rows of the batch, and the place of a row in it, do not change a bit
(measured on the CPU, and checked by a test).

A row whose numbers are no longer finite has no image: `Drawn.problem` states where that began. The other rows of its
batch are not affected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altdiffusion.diffusion.autoencoder import decode, decode_in_float32
from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.diffusion.noise import INITIAL_NOISE, keyed_normal
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.batch_shapes import BatchShapes
from altdiffusion.generation.schedulers import make_scheduler, settings_of
from altdiffusion.generation.settings import SamplerName, ShapeRule

NOISE_KEY = 0
"""First half of the key of the initial noise; the row's seed is the other half."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The description of one image."""

    prompt: str
    negative_prompt: str = ""
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: SamplerName

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale > 1.0

    @property
    def form(self) -> tuple[int, int, int, bool, SamplerName]:
        """What the rows of a batch have in common: width, height, steps, whether guided, sampler."""
        return self.width, self.height, self.steps, self.guided, self.sampler


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One row's result."""

    image: NDArray[np.uint8]
    """uint8 [height, width, 3]; without meaning where there is a problem."""
    problem: str = ""
    """Where the numbers stopped being finite; empty for an image."""
    vae_dtype: str | None = None
    """Type in which the VAE decoded, where it is not the model's."""


def batches(requests: Sequence[Request], batch_rows: int) -> Iterator[list[int]]:
    """Yield the places of each batch: rows of one form, in the order of the forms' first rows."""
    forms: dict[object, list[int]] = {}
    for place, request in enumerate(requests):
        forms.setdefault(request.form, []).append(place)
    for places in forms.values():
        for start in range(0, len(places), batch_rows):
            yield places[start : start + batch_rows]


class Sampler:
    """A loaded model.

    Args:
        bundle: the model, on its device and in its dtype.
        sampler, steps, guidance_scale: what `draw` draws with, as in `GenerateConfig`.
        batch_rows: B.
        batch_shapes: `proven` fills the last batch of a form up to the least size that gives the bits of B rows; `any`
            up to the next power of two.
        vae_fallback: whether an image that is not finite in the VAE's own dtype is decoded again in float32.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        sampler: SamplerName = "ddim",
        steps: int = 50,
        guidance_scale: float = 9.0,
        batch_rows: int,
        batch_shapes: ShapeRule = "proven",
        vae_fallback: bool = True,
    ) -> None:
        self._bundle = bundle
        self._defaults: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
        self._scheduler_name: SamplerName | None = None
        self._scheduler: Any = None
        self._batch_rows = batch_rows
        self._shape_rule = batch_shapes
        self._shapes = BatchShapes(batch_rows)
        self._vae_fallback = vae_fallback
        self._factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
        self._device = next(bundle.unet.parameters()).device
        self._dtype = next(bundle.unet.parameters()).dtype
        self._contexts: dict[str, Tensor] = {}

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], width: int, height: int) -> NDArray[np.uint8]:
        """Return images of one size, uint8 [N, height, width, 3], for N prompts and N seeds.

        Raises:
            AltDiffusionError: an image is not finite.
        """
        requests = [
            Request(prompt=prompt, seed=seed, width=width, height=height, **self._defaults)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        images = np.empty((len(requests), height, width, 3), np.uint8)
        for places, drawn in self.draw_rows(requests):
            for place, one in zip(places, drawn, strict=True):
                if one.problem:
                    raise AltDiffusionError(
                        f"image of {requests[place].prompt[:80]!r}", f"is not finite: {one.problem}", "use float32"
                    )
                images[place] = one.image
        return images

    def draw_rows(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Drawn]]]:
        """Yield the places and results of each batch; every distinct text is encoded once."""
        texts = [one.prompt for one in requests] + [one.negative_prompt for one in requests if one.guided]
        self._contexts = self._encode(list(dict.fromkeys(texts)))
        for places in batches(requests, self._batch_rows):
            chosen = [requests[place] for place in places]
            filled = [*chosen, *[chosen[-1]] * (self._shape_of(chosen) - len(chosen))]
            yield places, self._batch(filled)[: len(chosen)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens, start and end included, before anything is cut off."""
        if not texts:
            return []
        ids = self._bundle.tokenizer(list(texts), truncation=False, padding=False, verbose=False).input_ids
        return [len(one) for one in ids]

    @property
    def max_tokens(self) -> int:
        """T, the number of tokens that the text encoder reads."""
        return int(self._bundle.tokenizer.model_max_length)

    def initial_latents(self, seeds: Sequence[int], width: int, height: int) -> Tensor:
        """Return the noise before the scheduler's scaling, float32 [n, C, H, W], a function of seed and size alone."""
        shape = (self._bundle.unet.config.in_channels, height // self._factor, width // self._factor)
        keys = torch.tensor(list(seeds), dtype=torch.int64, device=self._device)
        return keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, shape)

    def _shape_of(self, rows: Sequence[Request]) -> int:
        """Return the size of the batch in which rows of one form are drawn."""
        if self._shape_rule == "any":
            return self._shapes.candidates(len(rows))[0]
        first = rows[0]
        form = (first.width, first.height, first.guided)

        def probe(part: slice) -> Tensor:
            return self._probe(part, *form)

        return self._shapes.smallest(len(rows), first.steps, form, probe)

    def _probe(self, part: slice, width: int, height: int, guided: bool) -> Tensor:
        """Return what UNet and VAE give for some of B random rows, [n, values]."""
        unet, vae = self._bundle.unet, self._bundle.vae
        seeds = range(self._batch_rows)
        noise = self.initial_latents(seeds, width, height)[part]
        keys = torch.tensor(list(seeds), dtype=torch.int64, device=self._device)
        shape = tuple(next(iter(self._contexts.values())).shape)
        context = keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, shape).to(self._dtype)[part]
        times = 2 if guided else 1
        with torch.inference_mode():
            inputs = torch.cat([noise] * times).to(self._dtype)
            epsilon = unet(inputs, 500, encoder_hidden_states=torch.cat([context] * times), return_dict=False)[0]
            decoded = vae.decode(noise.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return torch.cat([*(one.flatten(1) for one in epsilon.chunk(times)), decoded.flatten(1)], 1)

    def _batch(self, rows: Sequence[Request]) -> list[Drawn]:
        """Return the results of n rows of one form, at most B."""
        with torch.inference_mode():
            return self._results(rows)

    def _results(self, rows: Sequence[Request]) -> list[Drawn]:
        first = rows[0]
        context = self._context([row.prompt for row in rows])
        problems = ["" if finite else "the text encoder's output" for finite in _finite(context)]
        noise = self.initial_latents([row.seed for row in rows], first.width, first.height)
        latents, failed = self._denoise(rows, context, noise)
        for place, step in enumerate(failed.tolist()):
            if step and not problems[place]:
                problems[place] = f"the UNet's output at step {step} of {len(self._scheduler.timesteps)}"
        images, dtypes, decodable = self._decode(latents, [not problem for problem in problems])
        return [
            Drawn(image=image, problem=problem or ("" if good else "the VAE's output"), vae_dtype=dtype)
            for image, problem, dtype, good in zip(images, problems, dtypes, decodable, strict=True)
        ]

    def _decode(
        self, latents: Tensor, wanted: Sequence[bool]
    ) -> tuple[NDArray[np.uint8], list[str | None], list[bool]]:
        """Return images, uint8 [n, height, width, 3], the other dtype of some, and which are finite."""
        vae = self._bundle.vae
        dtype = next(vae.parameters()).dtype
        decoded = decode(vae, latents)
        finite = _finite(decoded)
        dtypes: list[str | None] = [None] * len(wanted)
        again = [place for place, good in enumerate(finite) if wanted[place] and not good]
        if again and self._vae_fallback and dtype != torch.float32:
            filling = latents[-1:].expand(self._batch_rows - len(latents), *latents.shape[1:])
            decoded[again] = decode_in_float32(vae, torch.cat((latents, filling)))[again]
            finite = _finite(decoded)
            dtypes = ["float32" if place in again else None for place in range(len(wanted))]
        pixels = (decoded.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round()
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy(), dtypes, finite

    def _denoise(self, rows: Sequence[Request], context: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents, float32 [n, C, H, W], and the step from 1 at which each row stopped being finite (0: none).

        Args:
            rows: n requests of one form.
            context: [n, T, D] of the prompts.
            noise: float32 [n, C, H, W].
        """
        scheduler, unet, guided = self._scheduler_of(rows[0].sampler), self._bundle.unet, rows[0].guided
        scale = torch.tensor([row.guidance_scale for row in rows], device=self._device)[:, None, None, None]
        if guided:
            context = torch.cat((self._context([row.negative_prompt for row in rows]), context))
        scheduler.set_timesteps(rows[0].steps, device=self._device)
        latents = noise * scheduler.init_noise_sigma
        failed = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        for number, timestep in enumerate(scheduler.timesteps, 1):
            doubled = torch.cat((latents, latents)) if guided else latents
            inputs = scheduler.scale_model_input(doubled, timestep).to(self._dtype)
            epsilon = unet(inputs, timestep, encoder_hidden_states=context, return_dict=False)[0].float()
            if guided:
                without, with_text = epsilon.chunk(2)
                epsilon = without + scale * (with_text - without)
            latents = scheduler.step(epsilon, timestep, latents, return_dict=False)[0]
            # A scheduler that clips would hide an infinity, so both are asked; nothing waits for the device here.
            good = torch.isfinite(epsilon).flatten(1).all(1) & torch.isfinite(latents).flatten(1).all(1)
            failed = torch.where((failed == 0) & ~good, number, failed)
        return latents, failed

    def _scheduler_of(self, name: SamplerName) -> Any:
        """Return the scheduler of a sampler; the last one is kept."""
        if self._scheduler_name != name:
            self._scheduler_name, self._scheduler = name, make_scheduler(name, settings_of(self._bundle.scheduler))
        return self._scheduler

    def _context(self, texts: Sequence[str]) -> Tensor:
        """Return the context [n, T, D] of n texts that were encoded before."""
        return torch.stack([self._contexts[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the context [T, D] of each text; texts are encoded B at a time."""
        bundle = self._bundle
        contexts: dict[str, Tensor] = {}
        for start in range(0, len(texts), self._batch_rows):
            some = texts[start : start + self._batch_rows]
            filled = [*some, *[""] * (self._batch_rows - len(some))]
            ids = tokenize(bundle.tokenizer, filled).to(self._device)
            with torch.inference_mode():
                encoded = encode_text(bundle.text_encoder, ids, bundle.tokenizer.pad_token_id).to(self._dtype)
            contexts |= dict(zip(some, encoded, strict=False))
        return contexts


def _finite(values: Tensor) -> list[bool]:
    """Return whether all values of each row are finite, [B, ...] -> [B]."""
    finite: list[bool] = torch.isfinite(values).flatten(1).all(1).tolist()
    return finite
