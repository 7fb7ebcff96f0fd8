"""Drawing of images with an exported model; each image is a function of its own row alone.

Shapes: N rows of a call, B `batch_rows`, n rows of a batch, T text positions, D context width, C x H x W latent, f the
VAE's factor.

    contexts.py    texts -> contexts
    denoising.py   noise and contexts -> latents
    decoding.py    latents -> pixels

A test checks that the result equals `StableDiffusionPipeline`'s. The initial noise is keyed by the row's seed. Matrix
products may round differently in another batch shape, so a batch has exactly B rows, or fewer where that is proven not
to change a bit (`batch_shapes`): the last one is filled up, and a text is encoded among B texts. Then the other rows of
the batch, and the place of a row in it, do not change a bit (measured on the CPU, and checked by a test).

A row whose numbers are no longer finite has no image: `Drawn.problem` states where that began. The other rows of its
batch are not affected.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.diffusion.noise import INITIAL_NOISE, keyed_normal
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.batch_shapes import BatchShapes
from altdiffusion.generation.contexts import Contexts
from altdiffusion.generation.decoding import Decoder, Decoding, finite
from altdiffusion.generation.denoising import Denoiser
from altdiffusion.generation.image_request import Drawn, Request, batches
from altdiffusion.generation.on_host import to_device
from altdiffusion.generation.passes import Begin
from altdiffusion.generation.settings import SamplerName, ShapeRule

NOISE_KEY = 0
"""First half of the key of the initial noise; the row's seed is the other half."""
PROBED_TIMESTEP = 500
"""Timestep of the rows that prove a batch shape; which kernels run does not depend on it."""


class Sampler:
    """A loaded model.

    Args:
        bundle: the model, on its device and in its dtype.
        sampler, steps, guidance_scale: what `draw` draws with, as in `GenerateConfig`.
        batch_rows: B.
        batch_shapes: `proven` fills the last batch of a form up to the least size that gives the bits of B rows; `any`
            up to the next size (`BatchShapes.candidates`).
        vae_fallback: whether an image that is not finite in the VAE's own dtype is decoded again in float32.
        begin: returns what is called in place of the UNet for one batch; None calls the UNet.
        full_batches: whether every batch has B rows, so that there is one shape per size.
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
        begin: Begin | None = None,
        full_batches: bool = False,
    ) -> None:
        self._bundle = bundle
        self._defaults: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
        self._batch_rows = batch_rows
        self._shape_rule = batch_shapes
        self._shapes = BatchShapes(batch_rows)
        self._full_batches = full_batches
        self._factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
        self._device = next(bundle.unet.parameters()).device
        self._dtype = next(bundle.unet.parameters()).dtype
        self._denoiser = Denoiser(bundle, begin)
        self._decoder = Decoder(bundle.vae, batch_rows, fallback=vae_fallback)
        self.contexts = Contexts(bundle, batch_rows)

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
        self.contexts.encode(texts)
        before: tuple[list[int], Decoding] | None = None
        for places in batches(requests, self._batch_rows):
            chosen = [requests[place] for place in places]
            filled = [*chosen, *[chosen[-1]] * (self._shape_of(chosen) - len(chosen))]
            batch = self._batch(filled)
            next(batch)
            if before is not None:  # it is read while the device works on the first step of this batch
                yield before[0], before[1].read()[: len(before[0])]
            before = places, _result(batch)
        if before is not None:
            yield before[0], before[1].read()[: len(before[0])]

    def initial_latents(self, seeds: Sequence[int], width: int, height: int) -> Tensor:
        """Return the noise before the scheduler's scaling, float32 [n, C, H, W], a function of seed and size alone."""
        shape = (self._bundle.unet.config.in_channels, height // self._factor, width // self._factor)
        keys = to_device(torch.tensor(list(seeds), dtype=torch.int64), self._device)
        return keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, shape)

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # it leaves the mode at each yield, `with` would not
    def _batch(self, rows: Sequence[Request]) -> Generator[None, None, Decoding]:
        """Return the results of n rows of one form, at most B, and yield once before: after the first step."""
        first = rows[0]
        context = self.contexts.of([row.prompt for row in rows])
        negative = self.contexts.of([row.negative_prompt for row in rows]) if first.guided else None
        noise = self.initial_latents([row.seed for row in rows], first.width, first.height)
        denoised = yield from self._denoiser.denoise(rows, context, negative, noise)
        return self._decoder.decode(denoised, finite(context))

    def _shape_of(self, rows: Sequence[Request]) -> int:
        """Return the size of the batch in which rows of one form are drawn."""
        if self._full_batches:
            return self._batch_rows
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
        context = keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, self.contexts.shape).to(self._dtype)[part]
        times = 2 if guided else 1
        with torch.inference_mode():
            inputs = torch.cat([noise] * times).to(self._dtype)
            contexts = torch.cat([context] * times)
            epsilon = unet(inputs, PROBED_TIMESTEP, encoder_hidden_states=contexts, return_dict=False)[0]
            decoded = vae.decode(noise.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return torch.cat([*(one.flatten(1) for one in epsilon.chunk(times)), decoded.flatten(1)], 1)


def _result(batch: Generator[None, None, Decoding]) -> Decoding:
    """Return what a generator returns after its last yield."""
    try:
        next(batch)
    except StopIteration as stop:
        result: Decoding = stop.value
        return result
    raise AssertionError("a batch yields once")
