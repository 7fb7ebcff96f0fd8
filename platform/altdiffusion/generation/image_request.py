"""What is asked of the sampler for one image, and what it gives back; rows of one form can share a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from altdiffusion.generation.settings import SamplerName

Span = tuple[float, float]
"""A range of the width, as shares of it from the left."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A range of the width with a prompt of its own."""

    prompt: str
    span: Span


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
    regions: tuple[Region, ...] = ()
    """In their columns, their prompts replace that of the row."""
    text_windows: int = 1
    """Windows in which the longest of its texts is read (prompt_windows.py)."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's prompt and those of its regions."""
        return self.prompt, *(region.prompt for region in self.regions)

    @property
    def encoded(self) -> tuple[str, ...]:
        """All texts that the image depends on: the negative prompt where it is guided, too."""
        return (*self.texts, self.negative_prompt) if self.guided else self.texts

    @property
    def spans(self) -> tuple[Span, ...]:
        """The regions without their prompts."""
        return tuple(region.span for region in self.regions)

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale > 1.0

    @property
    def form(self) -> tuple[object, ...]:
        """What the rows of a batch have in common: sizes, steps, whether guided, sampler, regions, text windows."""
        return self.width, self.height, self.steps, self.guided, self.sampler, self.spans, self.text_windows


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
