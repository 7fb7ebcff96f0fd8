"""Encode: images -> latents and token ids, for one resolution or shape or for several in one pass.

A pass reads and decodes an image once and crops it for each `Target` that takes the row. A row's latent depends on the
image, its row id and the config alone. It does not depend on the unit, its neighbours, the order or the other targets,
except for the last bit of float16, which a kernel may round differently at another place of a micro-batch. Text is
stored as token ids, because the text encoder's output would be ten times as large as the latent.

Each target is an output of the pipeline step, with a ledger of its own (`execution.units.MultiOutputWork`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.ahead import ahead
from altdiffusion.curation.config import EncodeConfig, FilterConfig
from altdiffusion.curation.encoding.buckets import nearest
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer, token_ids
from altdiffusion.curation.encoding.latent_encoder import LatentEncoder
from altdiffusion.curation.rejects import BUCKET, DECODE, FOR_TRAINING, FOR_VALIDATION, RESOLUTION, rejected
from altdiffusion.curation.scoring.scored import REASONS, Scored, failing, row_detail
from altdiffusion.diffusion.image_crop import Size, Unreadable, crop, offsets, open_rgb
from altdiffusion.diffusion.pinned_files import check_folder, folder_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeReader, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.reject_reasons import Reason
from altdiffusion.execution.units import MultiOutputWork, Unit
from altdiffusion.hashing import hash64
from altdiffusion.records import LATENTS
from altdiffusion.storage.binary_columns import binary_rows
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord

Crop = tuple[npt.NDArray[np.uint8], tuple[int, int]]
"""The crop of an image, uint8 [H, W, 3], and its offsets: top and left in the resized image, pixels."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A dataset of latents that a pass makes."""

    dataset: str
    resolution: int
    filter: FilterConfig = FilterConfig()
    size: Size | None = None
    """Width and height of the crop, one of `buckets`; None is the square."""
    buckets: tuple[Size, ...] = ()
    """All shapes of the resolution; an image goes to the nearest one only."""
    held_out: float = 0.0
    """Share of the images that are held out from the training (see `held_out`)."""
    takes_held_out: bool = False
    """Whether this dataset is that of the images that are held out, or of all others."""
    mirrored: bool = False
    """Whether left and right are exchanged before the VAE; mirroring the latent would give another result."""

    @property
    def crop_size(self) -> Size:
        """Width and height of the crop, pixels."""
        return self.size or (self.resolution, self.resolution)


def held_out(images: pa.Table, share: float) -> npt.NDArray[np.bool_]:
    """Return which rows are held out, bool [N]: a function of the image's SHA-256, so that an image with several
    captions, in several datasets or at several resolutions is on one side."""
    draws = (hash64(images["image_sha256"]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    chosen: npt.NDArray[np.bool_] = draws < share
    return chosen


def plan_encode(images: Version, rows_per_unit: int, *models: str, scores: Version | None = None) -> list[Unit]:
    """Return units of an images version and of its scores; `models` are the references of VAE and tokenizer."""
    if scores is None:
        return plan_ranges(images, rows_per_unit, *models)
    units = plan_ranges(images, rows_per_unit, str(scores.ref), *models)
    return [Unit(id=u.id, index=u.index, payload={**u.payload, "scores": str(scores.ref)}) for u in units]


def check_stored_size(lake: Lake, images: Version, resolution: int) -> None:
    """Refuse images that were stored too small for a resolution, as far as the version's history states.

    Raises:
        AltDiffusionError: the images, or those of a version that they were made from, were resized to less.
    """
    waiting = [images]
    while waiting:
        version = waiting.pop()
        download = version.manifest.config.get("download")
        if download is None:
            parents = [lake.version(ref) for ref in version.manifest.parent_refs if ref.kind == "dataset"]
            waiting += [parent for parent in parents if parent.manifest.kind == "images"]
        elif download["resize_mode"] != "no" and download["image_size"] < resolution:
            raise AltDiffusionError(
                f"resolution {resolution}",
                f"is more than the {download['image_size']} pixels (download.image_size) that {version.ref} was "
                "stored with: not one image would be large enough",
                f"download again with image_size of at least {resolution}, or encode at a lower resolution",
            )


class EncodeWork(RangeReader, MultiOutputWork):
    """The work on a row range of images, for one target or several."""

    def __init__(self, *, lake: str, targets: Sequence[Target], config: EncodeConfig) -> None:
        super().__init__(lake=lake)
        self.targets, self.config = {target.dataset: target for target in targets}, config
        self._scored: dict[str, Scored] = {}
        self._encoder: LatentEncoder | None = None
        self._tokenizer: Any = None

    def setup(self) -> None:
        """Load the VAE and the tokenizer, and note in the lake which VAE it is, for runs that train on its latents."""
        self._encoder = LatentEncoder(self.config)
        self._encoder.identity.note(self.lake, self.config.vae_digest or folder_digest(self.config.vae))
        folder = check_folder(self.config.tokenizer, self.config.tokenizer_digest)
        self._tokenizer = open_tokenizer(folder, self.config.tokenizer)

    def run_outputs(self, unit: Unit, outputs: Sequence[str]) -> list[UnitRecord]:
        """Encode and write one unit for some targets; images smaller than a resolution are rejected, never enlarged."""
        if self._encoder is None:
            raise RuntimeError("setup() has not been called")
        images = self.rows_of(unit)
        scores = self._scores(unit, images)
        trays = [_Tray(self.targets[name], images, scores, self._encoder) for name in outputs]
        self._fill(images, trays)
        return [self._finish(unit, images, scores, tray) for tray in trays]

    def _scores(self, unit: Unit, images: pa.Table) -> pa.Table | None:
        ref = unit.payload.get("scores")
        if ref is None:
            return None
        if ref not in self._scored:
            self._scored[ref] = Scored(self.version(ref), self.version_of(unit))
        return self._scored[ref].of_rows(images, int(unit.payload["shard"]), int(unit.payload["start"]))

    def _fill(self, images: pa.Table, trays: Sequence[_Tray]) -> None:
        """Decode each image that any tray takes, once, and add its crops to the trays."""
        where, bodies = offsets(self.config.seed, images["sample_id"].to_numpy()), images["image"]
        rows = np.flatnonzero(np.any([tray.takes for tray in trays], axis=0)).tolist()

        def prepare(row: int) -> list[Crop | None] | Unreadable:
            try:
                rgb = open_rgb(bodies[row].as_py())
            except Unreadable as unreadable:
                return unreadable
            sizes = {tray.target.crop_size for tray in trays if tray.takes[row]}  # also for a mirrored target, once
            crops = {size: crop(rgb, size, where[row]) for size in sizes}
            return [crops[tray.target.crop_size] if tray.takes[row] else None for tray in trays]

        prepared = ahead(prepare, rows, threads=self.config.threads, depth=2 * self.config.micro_batch)
        for row, crops in zip(rows, prepared, strict=True):
            if isinstance(crops, Unreadable):
                for tray in trays:
                    if tray.takes[row]:
                        tray.drop(row, DECODE, str(crops))
                continue
            for tray, cropped in zip(trays, crops, strict=True):
                if cropped is not None:
                    tray.add(row, *cropped)
        for tray in trays:
            tray.flush()

    def _finish(self, unit: Unit, images: pa.Table, scores: pa.Table | None, tray: _Tray) -> UnitRecord:
        dropped = sorted(tray.dropped)
        reasons, details = ([tray.dropped[row][part] for row in dropped] for part in (0, 1))
        return finish_unit(
            Lake(self.lake).dataset(tray.target.dataset),
            unit,
            rows_in=images.num_rows,
            accepted=[self._table(images, scores, tray)],
            rejects=[rejected(unit.id, images, dropped, reasons, detail=details)],
        )

    def _table(self, images: pa.Table, scores: pa.Table | None, tray: _Tray) -> pa.Table:
        """Return the LATENTS rows of a tray."""
        rows, count = pa.array(tray.rows, pa.int64()), len(tray.rows)
        names = ["sample_id", "image_sha256", "caption", "language"]
        kept = images.select(names).take(rows)
        columns: dict[str, Any] = {name: kept[name] for name in names}
        columns["latent"] = pa.chunked_array(tray.latents, pa.binary())
        for name, value in zip(("channels", "height", "width"), tray.shape, strict=True):
            columns[name] = pa.array(np.full(count, value, np.int16))
        columns["resolution"] = pa.array(np.full(count, tray.target.resolution, np.int32))
        top_left = np.array(tray.offsets, np.int32).reshape(-1, 2)
        columns["crop_top"], columns["crop_left"] = pa.array(top_left[:, 0]), pa.array(top_left[:, 1])
        columns["token_ids"] = token_ids(self._tokenizer, kept["caption"].to_pylist(), self.config.max_length)
        columns["aesthetic"] = _aesthetic(images, scores).take(rows)
        return pa.table([columns[field.name] for field in LATENTS], schema=LATENTS)


def _aesthetic(images: pa.Table, scores: pa.Table | None) -> pa.ChunkedArray:
    """Return the scored aesthetic V1, or the value that came with the images where it was not scored."""
    if scores is not None and "aesthetic_v1" in scores.column_names:
        return scores["aesthetic_v1"]
    return pc.coalesce(images["aesthetic_score"], images["aesthetic"])


class _Tray:
    """The rows of a unit that one target takes, on their way through the VAE, one micro-batch at a time."""

    def __init__(self, target: Target, images: pa.Table, scores: pa.Table | None, encoder: LatentEncoder) -> None:
        self.target = target
        self.dropped: dict[int, tuple[Reason, str]] = {}
        """Reason and detail by row; a row has one reason, the first one that applies."""
        self.rows: list[int] = []
        self.offsets: list[tuple[int, int]] = []
        """Top and left of each crop, pixels."""
        self.latents: list[pa.Array] = []
        self.shape: tuple[int, ...] = (0, 0, 0)
        """C, H, W of the latents, once one is made."""
        self._encoder, self._sample_ids = encoder, images["sample_id"].to_numpy()
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._sift(images, scores)
        self.takes = np.ones(images.num_rows, np.bool_)
        """Whether each row is decoded for this target."""
        self.takes[list(self.dropped)] = False

    def _sift(self, images: pa.Table, scores: pa.Table | None) -> None:
        target, (width, height) = self.target, self.target.crop_size
        if target.held_out:
            other, reason = held_out(images, target.held_out), FOR_VALIDATION
            if target.takes_held_out:
                other, reason = ~other, FOR_TRAINING
            for row in np.flatnonzero(other).tolist():
                self.dropped[row] = (reason, "")
        wide, high = (images[f"stored_{side}"].to_numpy().astype(np.int64) for side in ("width", "height"))
        if target.buckets:
            number = nearest(target.buckets, wide, high)
            for row in np.flatnonzero(number != target.buckets.index((width, height))).tolist():
                self.dropped.setdefault(row, (BUCKET, f"nearest to {'{} x {}'.format(*target.buckets[number[row]])}"))
        # An image that the download enlarged is a small one, so both sizes count.
        original = [images[f"original_{side}"].to_numpy() for side in ("width", "height")]
        short = np.minimum.reduce([wide, high, *original])
        for row in np.flatnonzero((wide < width) | (high < height) | (short < min(width, height))).tolist():
            shown = f"{short[row]} px" if not target.buckets else f"{wide[row]} x {high[row]} px"
            self.dropped.setdefault(row, (RESOLUTION, shown))
        for name, fails in failing(scores, self.target.filter) if scores is not None else ():
            for row in np.flatnonzero(fails).tolist():
                self.dropped.setdefault(row, (REASONS[name], row_detail(scores, name, row)))

    def drop(self, row: int, reason: Reason, detail: str) -> None:
        """Reject a row that this target was going to take."""
        self.dropped[row] = (reason, detail)

    def add(self, row: int, pixels: npt.NDArray[np.uint8], top_left: tuple[int, int]) -> None:
        """Add the next row's crop, uint8 [H, W, 3], and its offsets."""
        self.rows.append(row)
        self.offsets.append(top_left)
        self._pixels.append(pixels[:, ::-1] if self.target.mirrored else pixels)
        if len(self._pixels) == self._encoder.config.micro_batch:
            self.flush()

    def flush(self) -> None:
        """Encode the crops that wait."""
        if not self._pixels:
            return
        latents = self._encoder.encode(np.stack(self._pixels), self._sample_ids[self.rows[-len(self._pixels) :]])
        self.latents.append(binary_rows(latents))
        self.shape, self._pixels = latents.shape[1:], []
