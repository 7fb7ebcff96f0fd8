"""Images larger than the model draws: overlapping windows, and prompts by region along the width.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113). At every step the UNet predicts the noise of each window, and
the prediction of a latent is the mean over the windows that hold it. With DDIM that is the published average of the
windows' next latents, because such a step is the same linear function of latent and noise everywhere; and samplers with
a memory keep one memory per image. A window that several regions overlap is predicted once per region; each prediction
counts in the columns of its own region, as the paper's masks do.

A panorama's windows run across its right edge to its left one.

Shapes: n rows of a batch, P parts per image, R texts per row (its prompt and its regions'), T text positions, D context
width, C x H x W latent of the image, h x w of a part. All places and sizes are in latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from altdiffusion.generation.denoising import Predict
from altdiffusion.generation.image_request import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one pass of the UNet predicts: a window under one text."""

    rows: tuple[int, int]
    """Rows of the image, from and to."""
    columns: tuple[int, ...]
    """[w] columns of the image; they begin again at 0 where the window crosses the right edge."""
    text: int
    """0 for the row's prompt, k for that of its region k - 1."""
    counted: tuple[bool, ...]
    """[w] whether a column counts: those of the text's own region."""


def parts_of(
    height: int, width: int, spans: Sequence[Span], side: int | None, overlap: int = 0, circular: bool = False
) -> list[Part]:
    """Return the parts of an image: its windows, each once per text whose region it overlaps.

    Args:
        spans: the regions, as shares of the width; the row's prompt has the columns that none of them has.
        side: largest side of a window; None draws the image in one.
        overlap: columns or rows that neighbouring windows share, at least.
        circular: whether the left edge continues the right one, where the image is wider than a window.
    """
    owners = _owners(width, spans)
    tall, wide = min(height, side or height), min(width, side or width)
    parts = []
    for top in _starts(height, tall, overlap):
        for left in _starts(width, wide, overlap, circular):
            columns = tuple((left + step) % width for step in range(wide))
            for text, owned in enumerate(owners):
                counted = tuple(column in owned for column in columns)
                if any(counted):
                    parts.append(Part(rows=(top, top + tall), columns=columns, text=text, counted=counted))
    return parts


def is_whole(parts: Sequence[Part]) -> bool:
    """Return whether the parts are one: the whole image under the row's prompt."""
    return len(parts) == 1 and parts[0].text == 0


def _starts(length: int, side: int, overlap: int, circular: bool = False) -> list[int]:
    """Return where windows of a side begin, evenly spread, so that neighbours share `overlap` or more."""
    if length <= side:
        return [0]
    stride = side - overlap
    if circular:
        count = -(-length // stride)
        return [number * length // count for number in range(count)]
    count = -(-(length - side) // stride) + 1
    return [number * (length - side) // (count - 1) for number in range(count)]


def _owners(width: int, spans: Sequence[Span]) -> list[set[int]]:
    """Return the columns of each text, those of the row's prompt first; a region has at least one column."""
    owned = []
    for start, stop in spans:
        first = min(int(start * width + 0.5), width - 1)
        owned.append(set(range(first, max(int(stop * width + 0.5), first + 1))))
    return [set(range(width)).difference(*owned), *owned]


class _Call:
    """One call of the UNet: (row, number of the part), filled up with the last one to a size."""

    def __init__(self, jobs: list[tuple[int, int]], size: int, parts: Sequence[Part]) -> None:
        self.jobs = jobs
        self.filled = [*jobs, *jobs[-1:] * (size - len(jobs))]
        self.rows = [row for row, _ in self.filled]
        self.texts = [parts[number].text for _, number in self.filled]


class Composer:
    """The prediction of whole images from that of their parts, in calls of one shape.

    Every call of the UNet has `call_rows` parts, whichever images they are of, and the last one `last_rows`. So the
    memory is bounded by the size of a window, and the bits of an image do not depend on the other images.

    Args:
        begin: returns the UNet with guidance for all steps of one call.
        parts: P parts, the same for all rows.
        contexts: [n, R, T, D].
        negative: [n, T, D]; None where the rows are not guided.
        scale: float32 [n], guidance.
        call_rows: parts per call of the UNet.
        last_rows: size to which the last call is filled up.
    """

    def __init__(
        self,
        begin: Callable[[], Predict],
        parts: Sequence[Part],
        contexts: Tensor,
        negative: Tensor | None,
        scale: Tensor,
        *,
        call_rows: int,
        last_rows: int,
    ) -> None:
        self._contexts, self._negative, self._scale = contexts, negative, scale
        self._columns = [torch.tensor(part.columns, device=contexts.device) for part in parts]
        self._counted = [torch.tensor(part.counted, device=contexts.device, dtype=torch.float32) for part in parts]
        self._parts = parts
        jobs = [(row, number) for row in range(len(contexts)) for number in range(len(parts))]
        self._calls = [
            _Call(jobs[first : first + call_rows], call_rows if first + call_rows < len(jobs) else last_rows, parts)
            for first in range(0, len(jobs), call_rows)
        ]
        self._predicts = [
            begin() for _ in self._calls
        ]  # DeepCache keeps features of the same windows from step to step

    def __call__(self, inputs: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise of whole images, float32 [n, C, H, W], of what the UNet reads of them at a timestep."""
        total = torch.zeros_like(inputs, dtype=torch.float32)
        weight = torch.zeros_like(total[:1, :1])
        for number, part in enumerate(self._parts):
            weight[:, :, part.rows[0] : part.rows[1], self._columns[number]] += self._counted[number]
        for call, predict in zip(self._calls, self._predicts, strict=True):
            predicted = self._of(inputs, timestep, call, predict)
            for (row, number), one in zip(call.jobs, predicted, strict=False):
                first, last = self._parts[number].rows
                total[row][:, first:last, self._columns[number]] += one * self._counted[number]
        return total / weight

    def _of(self, inputs: Tensor, timestep: Tensor, call: _Call, predict: Predict) -> Tensor:
        """Return the predictions of the parts of one call."""
        crops = []
        for row, number in call.filled:
            first, last = self._parts[number].rows
            crops.append(inputs[row][:, first:last, self._columns[number]])
        texts = self._contexts[call.rows, call.texts]
        if self._negative is None:
            return predict(torch.stack(crops), timestep, texts, None)
        texts = torch.cat((self._negative[call.rows], texts))
        return predict(torch.stack(crops), timestep, texts, self._scale[call.rows])
