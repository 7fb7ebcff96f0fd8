"""Drawing of images with an exported model; each image is a function of its own row alone.

Shapes: N rows of a call, B `batch_rows`, n rows of a batch, T text positions, D context width, C x H x W latent, f the
VAE's factor.

    contexts.py    texts -> contexts
    denoising.py   noise and contexts -> latents
    windows.py     large images and regions: the loop's predictions, part by part
    decoding.py    latents -> pixels

A test checks that the result equals `StableDiffusionPipeline`'s. The initial noise is keyed by the row's seed. Matrix
products may round differently in another batch shape, so a batch has exactly B rows, or fewer where that is proven not
to change a bit (`batch_shapes`): the last one is filled up, and a text is encoded among B texts. Then the other rows of
the batch, and the place of a row in it, do not change a bit (measured on the CPU, and checked by a test).

A row whose numbers are no longer finite has no image: `Drawn.problem` states where that began. The other rows of its
batch are not affected.
"""

from __future__ import annotations

import dataclasses
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
from altdiffusion.generation.decoding import Decoder, Decoding, finite, vae_factor
from altdiffusion.generation.denoising import Denoiser, guidance_scales
from altdiffusion.generation.image_request import Drawn, Request, batches
from altdiffusion.generation.on_host import to_device
from altdiffusion.generation.passes import Begin
from altdiffusion.generation.settings import SamplerName, ShapeRule, WindowsConfig
from altdiffusion.generation.windows import Composer, Part, is_whole, parts_of

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
        windows: how images larger than the model draws are drawn; None draws any size in one pass.
        prompt_windows: windows of text that a prompt is read in at most.
        vae_tiling: side in pixels of the tiles in which larger images are decoded; None decodes them as a whole.
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
        windows: WindowsConfig | None = None,
        vae_tiling: int | None = None,
        prompt_windows: int = 1,
        begin: Begin | None = None,
        full_batches: bool = False,
    ) -> None:
        self._bundle = bundle
        self._defaults: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
        self._batch_rows = batch_rows
        self._shape_rule = batch_shapes
        self._shapes = BatchShapes(batch_rows)
        self._full_batches = full_batches
        self._factor = vae_factor(bundle.vae)
        self._windows = windows
        self._device = next(bundle.unet.parameters()).device
        self._dtype = next(bundle.unet.parameters()).dtype
        self._denoiser = Denoiser(bundle, begin)
        self._decoder = Decoder(bundle.vae, batch_rows, fallback=vae_fallback, tile=vae_tiling)
        self._large_decoder = Decoder(bundle.vae, 1, fallback=vae_fallback, tile=vae_tiling)
        self.contexts = Contexts(bundle, batch_rows, prompt_windows)

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
        requests = self._measured(requests)
        self.contexts.encode([(text, one.text_windows) for one in requests for text in one.encoded])
        before: tuple[list[int], list[Decoding]] | None = None
        for places in batches(requests, self._batch_rows):
            chosen = [requests[place] for place in places]
            filled = [*chosen, *[chosen[-1]] * (self._shape_of(chosen) - len(chosen))]
            batch = self._batch(filled)
            next(batch)
            if before is not None:  # it is read while the device works on the first step of this batch
                yield _read(*before)
            before = places, _result(batch)
        if before is not None:
            yield _read(*before)

    def _measured(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests with the number of windows that the longest text of each takes."""
        texts = list(dict.fromkeys(text for one in requests for text in one.encoded))
        windows = dict(zip(texts, self.contexts.windows.of(texts), strict=True))
        return [dataclasses.replace(one, text_windows=max(windows[text] for text in one.encoded)) for one in requests]

    def initial_latents(self, seeds: Sequence[int], width: int, height: int) -> Tensor:
        """Return the noise before the scheduler's scaling, float32 [n, C, H, W], a function of seed and size alone."""
        shape = (self._bundle.unet.config.in_channels, height // self._factor, width // self._factor)
        keys = to_device(torch.tensor(list(seeds), dtype=torch.int64), self._device)
        return keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, shape)

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # it leaves the mode at each yield, `with` would not
    def _batch(self, rows: Sequence[Request]) -> Generator[None, None, list[Decoding]]:
        """Return the results of n rows of one form, at most B, and yield once before: after the first step."""
        first = rows[0]
        parts = self._parts_of(first)
        contexts = torch.stack([self.contexts.of(row.texts, first.text_windows) for row in rows])
        negatives = [row.negative_prompt for row in rows]
        negative = self.contexts.of(negatives, first.text_windows) if first.guided else None
        noise = self.initial_latents([row.seed for row in rows], first.width, first.height)
        compose = None if is_whole(parts) else self._composer(rows, parts, contexts, negative)
        denoised = yield from self._denoiser.denoise(rows, contexts[:, 0], negative, noise, compose)
        readable = finite(contexts)
        if compose is None:
            return [self._decoder.decode(denoised, readable)]
        circular = len(set(parts[0].columns)) < noise.shape[-1] and self._circular
        return [
            self._large_decoder.decode(one, readable[row : row + 1], circular=circular)
            for row, one in enumerate(denoised.rows())
        ]

    @property
    def _circular(self) -> bool:
        return self._windows is not None and self._windows.circular

    def _parts_of(self, row: Request) -> list[Part]:
        """Return what the UNet predicts one by one of a row's image: one part, the whole, of most images."""
        windows, factor = self._windows, self._factor
        sizes = row.height // factor, row.width // factor
        if windows is None:
            return parts_of(*sizes, row.spans, None)
        return parts_of(*sizes, row.spans, windows.side // factor, windows.overlap // factor, windows.circular)

    def _composer(
        self, rows: Sequence[Request], parts: Sequence[Part], contexts: Tensor, negative: Tensor | None
    ) -> Composer:
        first, count = rows[0], len(rows) * len(parts)
        height, width = parts[0].rows[1] - parts[0].rows[0], len(parts[0].columns)
        last = (count - 1) % self._batch_rows + 1
        size = self._size_for(last, first, width * self._factor, height * self._factor)
        scale = guidance_scales(rows, self._device)
        return Composer(
            self._denoiser.begin, parts, contexts, negative, scale, call_rows=self._batch_rows, last_rows=size
        )

    def _shape_of(self, rows: Sequence[Request]) -> int:
        """Return the size of the batch in which rows of one form are drawn."""
        first = rows[0]
        if not is_whole(self._parts_of(first)):
            return len(rows)  # the calls of the UNet have a size of their own, and images are decoded one by one
        return self._size_for(len(rows), first, first.width, first.height)

    def _size_for(self, count: int, row: Request, width: int, height: int) -> int:
        """Return to how many images or windows of one size a call of the UNet is filled up, for rows like this one."""
        if self._full_batches:
            return self._batch_rows
        if self._shape_rule == "any":
            return self._shapes.candidates(count)[0]
        form = (width, height, row.guided, row.text_windows)

        def probe(part: slice) -> Tensor:
            return self._probe(part, *form)

        return self._shapes.smallest(count, row.steps, form, probe)

    def _probe(self, part: slice, width: int, height: int, guided: bool, text_windows: int) -> Tensor:
        """Return what UNet and VAE give for some of B random rows, [n, values]."""
        unet, vae = self._bundle.unet, self._bundle.vae
        seeds = range(self._batch_rows)
        noise = self.initial_latents(seeds, width, height)[part]
        keys = torch.tensor(list(seeds), dtype=torch.int64, device=self._device)
        context = keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, self.contexts.shape(text_windows)).to(self._dtype)[part]
        times = 2 if guided else 1
        with torch.inference_mode():
            inputs = torch.cat([noise] * times).to(self._dtype)
            contexts = torch.cat([context] * times)
            epsilon = unet(inputs, PROBED_TIMESTEP, encoder_hidden_states=contexts, return_dict=False)[0]
            decoded = vae.decode(noise.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return torch.cat([*(one.flatten(1) for one in epsilon.chunk(times)), decoded.flatten(1)], 1)


def _read(places: list[int], decodings: Sequence[Decoding]) -> tuple[list[int], list[Drawn]]:
    """Return the results of a batch once they are computed, without those of the rows that filled it up."""
    drawn = [one for decoding in decodings for one in decoding.read()]
    return places, drawn[: len(places)]


def _result(batch: Generator[None, None, list[Decoding]]) -> list[Decoding]:
    """Return what a generator returns after its last yield."""
    try:
        next(batch)
    except StopIteration as stop:
        result: list[Decoding] = stop.value
        return result
    raise AssertionError("a batch yields once")
