"""A loaded model that draws what a person asks for on the page, one click after the other."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import encode_image
from altdiffusion.generation.image_request import Drawn, Request
from altdiffusion.generation.image_rows import request_record
from altdiffusion.generation.loading import load_sampler
from altdiffusion.generation.model import Model, check_sampling, native_side, size_multiple
from altdiffusion.generation.settings import GenerateConfig, SamplerName

BATCH_ROWS = 6
"""Images per batch: the page shows each batch when it is drawn, so that 18 languages appear in three parts."""
MOST_SIDE = 2048
_MOST_SEED = 2**63 - 1


class Drawing:
    """A model in memory.

    Args:
        model: what is loaded.
        config: device, dtype, adapters and all else that a person does not choose on the page.
    """

    def __init__(self, model: Model, config: GenerateConfig) -> None:
        self.model = model
        self.side = native_side(model)
        self.multiple = size_multiple(model)
        self._config = replace(config, batch_rows=BATCH_ROWS, batch_shapes="any", image_format="png")
        self._sampler = load_sampler(model, self._config)
        self._lock = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="altdiffusion-play-"))
        """What was drawn; `close` removes it."""

    def close(self) -> None:
        """Remove the files of all images."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def requests(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str,
        seed: float,
        width: float,
        height: float,
        steps: float,
        guidance_scale: float,
        sampler: SamplerName,
        count: float = 1,
    ) -> list[Request]:
        """Return what to draw: `count` images per prompt, of this seed, that plus 1, and so on.

        Raises:
            AltDiffusionError: a prompt is blank, or a value is not one that this model draws with.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise AltDiffusionError("the prompt", "is blank", "write what to draw, in any language")
        if seed != int(seed) or not 0 <= seed <= _MOST_SEED - count:
            raise AltDiffusionError(f"seed {seed}", "is not a whole number of up to 63 bits", "write e.g. 42")
        for side in (width, height):
            if side % self.multiple or not self.multiple <= side <= MOST_SIDE:
                raise AltDiffusionError(
                    f"size {width:g} x {height:g}",
                    f"has a side that is not a multiple of {self.multiple} up to {MOST_SIDE}",
                    f"write e.g. {self.side}",
                )
        check_sampling(self.model, sampler, int(steps))
        return [
            Request(
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=int(seed) + number,
                width=int(width),
                height=int(height),
                steps=int(steps),
                guidance_scale=float(guidance_scale),
                sampler=sampler,
            )
            for prompt in prompts
            for number in range(int(count))
        ]

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Path | None]]:
        """Draw one batch after the other, and yield the files of all images so far, None where one is not drawn yet.

        Raises:
            AltDiffusionError: an image is not finite.
        """
        files: list[Path | None] = [None] * len(requests)
        with self._lock:  # the sampler keeps the texts of one call
            for places, drawn in self._sampler.draw_rows(requests):
                for place, one in zip(places, drawn, strict=True):
                    files[place] = self._write(requests[place], one)
                yield list(files)

    def _write(self, request: Request, drawn: Drawn) -> Path:
        if drawn.problem:
            raise AltDiffusionError(
                f"image of {request.prompt[:80]!r}",
                f"is not finite: {drawn.problem}",
                "start play with --dtype float32",
            )
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        path = folder / f"image-{request.seed}.png"
        record = request_record(request, self._config, self.model)
        path.write_bytes(encode_image(drawn.image, "png", record=record))
        return path
