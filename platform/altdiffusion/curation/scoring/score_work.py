"""Score: images -> one row of numbers per image. One pass of CLIP's image tower serves the embedding and every head.

`ScoreWork` fills a dataset of kind `scores`; `make_scorer` gives the one number that download takes along.

Images are decoded by threads ahead of the model; the model always sees a full batch, padded with black squares, so
that its kernels are the same ones whatever the unit's size. A unit run twice on one kind of device therefore writes the
same bytes. In units of another size an image has another place in its batch, where kernels may round the last bit
differently: its scores are then equal to about 1e-6 in float32, not to the bit. `batch`, `rows_per_unit` and
`dtype` are therefore part of a version's identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.ahead import ahead
from altdiffusion.curation.config import SCORE_NAMES, ScoreConfig
from altdiffusion.curation.rejects import DECODE, rejected
from altdiffusion.curation.scoring.classifier import Classifier
from altdiffusion.curation.scoring.embedding import ClipEmbedder
from altdiffusion.curation.scoring.heads import Head
from altdiffusion.diffusion.image_crop import Unreadable, open_rgb
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.units import Unit
from altdiffusion.records import SCORES
from altdiffusion.storage.binary_columns import binary_rows, bodies_of
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord

Pixels = tuple[npt.NDArray[Any], ...]
"""One image in the form that each model reads."""


class Scorer(Protocol):
    """Adds one number per image."""

    requires: tuple[str, ...]
    """Columns it reads."""
    provides: str
    """Column it fills."""

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Return one number per row, float32 (nullable), in order."""


def make_scorer(config: ScoreConfig) -> Scorer:
    """Load the scorer of `aesthetic_score`, in the worker: the source's own column, or CLIP with the V1 head."""
    return SourceAestheticScorer() if config.clip is None else ClipAestheticScorer(config)


class SourceAestheticScorer:
    """Passes the source's own aesthetic column through."""

    requires: tuple[str, ...] = ("aesthetic",)
    provides = "aesthetic_score"

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        return images["aesthetic"].cast(pa.float32())


class ClipAestheticScorer:
    """CLIP's image embedding through LAION's V1 head; null where an image cannot be read."""

    requires: tuple[str, ...] = ("image",)
    provides = "aesthetic_score"

    def __init__(self, config: ScoreConfig) -> None:
        if config.aesthetic_v1 is None:
            raise AltDiffusionError(
                "score.clip", "has no aesthetic head", "give score.aesthetic_v1, or set clip to null"
            )
        alone = dataclasses.replace(config, aesthetic_v2=None, nsfw=None, watermark=None)
        self._scorer = ImageScorer(alone)

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Return the scores, [rows], about 1 to 10."""
        scored, unreadable = self._scorer.score(images["image"])
        place = np.full(images.num_rows, -1, np.int64)
        place[_readable(images.num_rows, unreadable)] = np.arange(scored.num_rows)
        return scored["aesthetic_v1"].take(pa.array(place, mask=place < 0))


class ImageScorer:
    """All scorers of a config, for encoded images."""

    def __init__(self, config: ScoreConfig) -> None:
        """Load the models.

        Raises:
            AltDiffusionError: weights are missing, not those pinned, or do not fit each other.
        """
        self._config = config
        self._embedder: ClipEmbedder | None = None
        self._heads: dict[str, Head] = {}
        if config.clip is not None and config.clip_digest is not None:
            self._embedder = ClipEmbedder(config.clip, config.clip_digest, device=config.device, dtype=config.dtype)
            width = self._embedder.width
            self._heads = {name: Head(head, width, config.device) for name, head in config.heads.items()}
        self._classifiers = {
            name: Classifier(classifier, device=config.device, dtype=config.dtype)
            for name, classifier in config.classifiers.items()
        }
        self._models: list[ClipEmbedder | Classifier] = [*self._classifiers.values()]
        if self._embedder is not None:
            self._models.insert(0, self._embedder)

    def score(self, bodies: pa.ChunkedArray) -> tuple[pa.Table, dict[int, str]]:
        """Score n encoded images; at most four batches of them are held in memory at a time.

        Returns:
            The readable ones' embedding and scores, in order: those columns of SCORES, null where not configured.
            Why each other one cannot be read, by row.
        """
        config = self._config
        prepared = ahead(self._prepare, bodies_of(bodies), threads=config.threads, depth=2 * config.batch)
        unreadable: dict[int, str] = {}
        batches = [self._columns(batch) for batch in _batches(prepared, config.batch, unreadable)]
        schema = pa.schema([SCORES.field(name) for name in ("embedding", *SCORE_NAMES)])
        return pa.Table.from_batches(
            [pa.record_batch([columns[field.name] for field in schema], schema=schema) for columns in batches], schema
        ), unreadable

    def _prepare(self, body: bytes) -> Pixels | Unreadable:
        try:
            rgb = open_rgb(body)
        except Unreadable as unreadable:
            return unreadable
        return tuple(model.pixels(rgb) for model in self._models)

    def _columns(self, images: Sequence[Pixels]) -> dict[str, pa.Array]:
        count = len(images)
        stacks = [self._stack([image[number] for image in images]) for number in range(len(self._models))]
        columns: dict[str, pa.Array] = {
            name: pa.nulls(count, SCORES.field(name).type) for name in ("embedding", *SCORE_NAMES)
        }
        if self._embedder is not None:
            embedding = self._embedder.embed(stacks.pop(0))
            columns["embedding"] = binary_rows(embedding[:count].cpu().numpy().astype(np.float16))
            for name, head in self._heads.items():
                columns[name] = pa.array(head(embedding)[:count].cpu().numpy(), pa.float32())
        for (name, classifier), stack in zip(self._classifiers.items(), stacks, strict=True):
            columns[name] = pa.array(classifier.score(stack)[:count].cpu().numpy(), pa.float32())
        return columns

    def _stack(self, images: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return a full batch [batch, ...], zeros behind the last image."""
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise AltDiffusionError(
                "a classifier's preprocessing", f"makes images of {len(shapes)} sizes", "have it resize to one size"
            )
        stack = np.zeros((self._config.batch, *shapes.pop()), images[0].dtype)
        np.stack(images, out=stack[: len(images)])
        return stack


def _batches(prepared: Iterator[Pixels | Unreadable], size: int, unreadable: dict[int, str]) -> Iterator[list[Pixels]]:
    """Return the readable images, `size` at a time; note the others in `unreadable`."""
    batch: list[Pixels] = []
    for row, image in enumerate(prepared):
        if isinstance(image, Unreadable):
            unreadable[row] = str(image)
            continue
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _readable(rows: int, unreadable: dict[int, str]) -> npt.NDArray[np.int64]:
    """Return the rows that can be read, in order."""
    return np.setdiff1d(np.arange(rows), np.fromiter(unreadable, np.int64, len(unreadable)))


def plan_score(images: Version, rows_per_unit: int, *models: str) -> list[Unit]:
    """Return the units of an images version, in order; `models` are the references of what scores."""
    return plan_ranges(images, rows_per_unit, *models)


class ScoreWork(RangeWork):
    """The work on a row range of images.

    A unit leaves exactly one shard, if need be an empty one: where a row's scores are follows from its place among the
    images (`scored.py`).
    """

    def __init__(self, *, lake: str, dataset: str, config: ScoreConfig) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.config = config
        self._scorer: ImageScorer | None = None

    def setup(self) -> None:
        """Load the models."""
        self._scorer = ImageScorer(self.config)

    def run(self, unit: Unit) -> UnitRecord:
        """Score and write one unit; an image that cannot be read is rejected."""
        if self._scorer is None:
            raise RuntimeError("setup() has not been called")
        images = self.rows_of(unit)
        scores, unreadable = self._scorer.score(images["image"])
        kept = images.select(["sample_id", "image_sha256", "language"]).take(_readable(images.num_rows, unreadable))
        columns = {name: kept[name] for name in kept.column_names}
        columns |= {name: scores[name] for name in scores.column_names}
        return finish_unit(
            self.output,
            unit,
            rows_in=images.num_rows,
            accepted=[pa.table([columns[field.name] for field in SCORES], schema=SCORES)],
            rejects=[rejected(unit.id, images, list(unreadable), DECODE, detail=list(unreadable.values()))],
            keep_empty=True,
        )
