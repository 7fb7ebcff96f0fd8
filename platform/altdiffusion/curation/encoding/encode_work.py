"""Encode: images -> latents and token ids, for one resolution or shape or for several in one pass.

A pass reads and decodes an image once and cuts a piece for each `Target` that takes the row. A row's latent depends
on the image, its row id and the config: on no unit, neighbour or order, but for a last bit of float16 that a kernel
may round differently at another place of a micro-batch; and on nothing else that the pass makes. Text is stored as
token ids: the encoder's output would be ten times the latent.

Exactly once: each target is a dataset with a ledger of its own, and units have the same ids in all of them. A pass
over a unit writes the other targets' shards and records first (put-if-absent) and leaves its own record to the
runner; killed in between, it finds what is recorded and makes the rest. The other targets' pipeline steps then find
every unit done; where one has lost a file, its own pipeline step makes that unit alone.
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
from altdiffusion.curation.assets import check_folder, folder_digest
from altdiffusion.curation.config import EncodeConfig, FilterConfig
from altdiffusion.curation.encoding.buckets import nearest
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer, token_ids
from altdiffusion.curation.encoding.latent_encoder import LatentEncoder
from altdiffusion.curation.images.binary_columns import binary_rows
from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.curation.scoring.scored import REASONS, Scored, failing, row_detail
from altdiffusion.diffusion.image_crop import Size, Unreadable, crop, offsets, open_rgb
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import open_version, plan_ranges, read_range
from altdiffusion.records import LATENTS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Ledger, Unit, UnitRecord

Piece = tuple[npt.NDArray[np.uint8], tuple[int, int]]
"""What was cut out of an image, uint8 [H, W, 3], and where: top and left in the resized image."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A dataset of latents that a pass makes."""

    dataset: str
    fingerprint: str
    """Of its pipeline step: names its ledger."""
    resolution: int
    filter: FilterConfig = FilterConfig()
    size: Size | None = None
    """Width and height of what is cut out, one of `buckets`; None is the square."""
    buckets: tuple[Size, ...] = ()
    """All shapes of the resolution: an image goes to the nearest of them only."""
    mirrored: bool = False
    """Left and right exchanged before the VAE, which is not what exchanging them in a latent would give."""

    @property
    def cut(self) -> Size:
        """Width and height of what is cut out, pixels."""
        return self.size or (self.resolution, self.resolution)


def plan_encode(images: Version, rows_per_unit: int, *models: str, scores: Version | None = None) -> list[Unit]:
    """Units of an images version, with the scores beside it; `models` name the VAE and the tokenizer."""
    if scores is None:
        return plan_ranges(images, rows_per_unit, *models)
    units = plan_ranges(images, rows_per_unit, str(scores.ref), *models)
    return [Unit(id=u.id, index=u.index, payload={**u.payload, "scores": str(scores.ref)}) for u in units]


def check_stored_size(lake: Lake, images: Version, resolution: int) -> None:
    """Whether images were stored large enough for a resolution, as far as the version's history says.

    Raises:
        AltDiffusionError: they, or those of a version it was made from, were resized to less.
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
                "stored with: not one picture would be large enough",
                f"download again with image_size of at least {resolution}, or encode at a lower resolution",
            )


class EncodeWork:
    """Works a row range of images for the first target and, in passing, for the others."""

    def __init__(self, *, lake: str, targets: Sequence[Target], config: EncodeConfig) -> None:
        self.lake, self.targets, self.config = lake, tuple(targets), config
        self._versions: dict[str, Version] = {}
        self._scored: dict[str, Scored] = {}
        self._encoder: LatentEncoder | None = None
        self._tokenizer: Any = None

    def setup(self) -> None:
        """Load the VAE and the tokenizer; note in the lake which VAE it is, for runs that train on its latents."""
        self._encoder = LatentEncoder(self.config)
        self._encoder.identity.note(self.lake, self.config.vae_digest or folder_digest(self.config.vae))
        folder = check_folder(self.config.tokenizer, self.config.tokenizer_digest)
        self._tokenizer = open_tokenizer(folder, self.config.tokenizer)

    def run(self, unit: Unit) -> UnitRecord:
        """Encodes and writes one unit; images smaller than the resolution are rejected, never enlarged."""
        if self._encoder is None:
            raise RuntimeError("setup() has not been called")
        own, *others = self.targets
        targets = [own, *(target for target in others if self._ledger(target).get(unit.id) is None)]
        images = read_range(self.lake, unit, self._versions)
        scores = self._scores(unit, images)
        trays = [_Tray(target, images, scores, self._encoder) for target in targets]
        self._fill(images, trays)
        for tray in trays[1:]:
            self._ledger(tray.target).record(self._finish(unit, images, scores, tray))
        return self._finish(unit, images, scores, trays[0])

    def _ledger(self, target: Target) -> Ledger:
        return Lake(self.lake).dataset(target.dataset).ledger(target.fingerprint)

    def _scores(self, unit: Unit, images: pa.Table) -> pa.Table | None:
        ref = unit.payload.get("scores")
        if ref is None:
            return None
        if ref not in self._scored:
            self._scored[ref] = Scored(Lake(self.lake).version(ref), open_version(self.lake, unit, self._versions))
        return self._scored[ref].beside(images, int(unit.payload["shard"]), int(unit.payload["start"]))

    def _fill(self, images: pa.Table, trays: Sequence[_Tray]) -> None:
        """Decodes each image that any tray takes, once, and lays its pieces on the trays."""
        where, bodies = offsets(self.config.seed, images["sample_id"].to_numpy()), images["image"]
        rows = np.flatnonzero(np.any([tray.takes for tray in trays], axis=0)).tolist()

        def prepare(row: int) -> list[Piece | None] | Unreadable:
            try:
                rgb = open_rgb(bodies[row].as_py())
            except Unreadable as unreadable:
                return unreadable
            sizes = {tray.target.cut for tray in trays if tray.takes[row]}  # a mirrored one is cut once
            pieces = {size: crop(rgb, size, where[row]) for size in sizes}
            return [pieces[tray.target.cut] if tray.takes[row] else None for tray in trays]

        prepared = ahead(prepare, rows, threads=self.config.threads, depth=2 * self.config.micro_batch)
        for row, pieces in zip(rows, prepared, strict=True):
            if isinstance(pieces, Unreadable):
                for tray in trays:
                    if tray.takes[row]:
                        tray.drop(row, "decode", str(pieces))
                continue
            for tray, piece in zip(trays, pieces, strict=True):
                if piece is not None:
                    tray.lay(row, *piece)
        for tray in trays:
            tray.flush()

    def _finish(self, unit: Unit, images: pa.Table, scores: pa.Table | None, tray: _Tray) -> UnitRecord:
        dropped = sorted(tray.dropped)
        gone = images.select(["sample_id", "url", "language"]).take(pa.array(dropped, pa.int64()))
        rejects = rejects_table(
            unit.id,
            row=dropped,
            reason=[tray.dropped[row][0] for row in dropped],
            sample_id=gone["sample_id"],
            url=gone["url"],
            language=gone["language"],
            detail=[tray.dropped[row][1] for row in dropped],
        )
        dataset = Lake(self.lake).dataset(tray.target.dataset)
        return finish_unit(
            dataset, unit, rows_in=images.num_rows, accepted=[self._table(images, scores, tray)], rejects=rejects
        )

    def _table(self, images: pa.Table, scores: pa.Table | None, tray: _Tray) -> pa.Table:
        """The LATENTS rows of a tray."""
        rows, count = pa.array(tray.rows, pa.int64()), len(tray.rows)
        names = ["sample_id", "image_sha256", "caption", "language"]
        kept = images.select(names).take(rows)
        columns: dict[str, Any] = {name: kept[name] for name in names}
        columns["latent"] = pa.chunked_array(tray.latents, pa.binary())
        for name, value in zip(("channels", "height", "width"), tray.shape, strict=True):
            columns[name] = pa.array(np.full(count, value, np.int16))
        columns["resolution"] = pa.array(np.full(count, tray.target.resolution, np.int32))
        crops = np.array(tray.crops, np.int32).reshape(-1, 2)
        columns["crop_top"], columns["crop_left"] = pa.array(crops[:, 0]), pa.array(crops[:, 1])
        columns["token_ids"] = token_ids(self._tokenizer, kept["caption"].to_pylist(), self.config.max_length)
        columns["aesthetic"] = _aesthetic(images, scores).take(rows)
        return pa.table([columns[field.name] for field in LATENTS], schema=LATENTS)


def _aesthetic(images: pa.Table, scores: pa.Table | None) -> pa.ChunkedArray:
    """Aesthetic V1 as scored; where it was not, what came with the images."""
    if scores is not None and "aesthetic_v1" in scores.column_names:
        return scores["aesthetic_v1"]
    return pc.coalesce(images["aesthetic_score"], images["aesthetic"])


class _Tray:
    """The rows of a unit that one target takes, on their way through the VAE: a micro-batch at a time."""

    def __init__(self, target: Target, images: pa.Table, scores: pa.Table | None, encoder: LatentEncoder) -> None:
        self.target = target
        self.dropped: dict[int, tuple[str, str]] = {}
        """Reason and detail by row; a row has one reason, the first that applies."""
        self.rows: list[int] = []
        self.crops: list[tuple[int, int]] = []
        self.latents: list[pa.Array] = []
        self.shape: tuple[int, ...] = (0, 0, 0)
        """C, H, W, once a latent is made."""
        self._encoder, self._sample_ids = encoder, images["sample_id"].to_numpy()
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._sift(images, scores)
        self.takes = np.ones(images.num_rows, np.bool_)
        """Whether each row gets this far."""
        self.takes[list(self.dropped)] = False

    def _sift(self, images: pa.Table, scores: pa.Table | None) -> None:
        target, (width, height) = self.target, self.target.cut
        wide, high = (images[f"stored_{side}"].to_numpy().astype(np.int64) for side in ("width", "height"))
        if target.buckets:
            number = nearest(target.buckets, wide, high)
            for row in np.flatnonzero(number != target.buckets.index((width, height))).tolist():
                self.dropped[row] = ("bucket", f"nearest to {'{} x {}'.format(*target.buckets[number[row]])}")
        # An image that download enlarged is a small one: both sizes count.
        original = [images[f"original_{side}"].to_numpy() for side in ("width", "height")]
        short = np.minimum.reduce([wide, high, *original])
        for row in np.flatnonzero((wide < width) | (high < height) | (short < min(width, height))).tolist():
            said = f"{short[row]} px" if not target.buckets else f"{wide[row]} x {high[row]} px"
            self.dropped.setdefault(row, ("resolution", said))
        for name, fails in failing(scores, self.target.filter) if scores is not None else ():
            for row in np.flatnonzero(fails).tolist():
                self.dropped.setdefault(row, (REASONS[name], row_detail(scores, name, row)))

    def drop(self, row: int, reason: str, detail: str) -> None:
        """Rejects a row that this target was to take."""
        self.dropped[row] = (reason, detail)

    def lay(self, row: int, pixels: npt.NDArray[np.uint8], crop: tuple[int, int]) -> None:
        """Takes the next row's piece, uint8 [H, W, 3]."""
        self.rows.append(row)
        self.crops.append(crop)
        self._pixels.append(pixels[:, ::-1] if self.target.mirrored else pixels)
        if len(self._pixels) == self._encoder.config.micro_batch:
            self.flush()

    def flush(self) -> None:
        """Encodes what lies here."""
        if not self._pixels:
            return
        latents = self._encoder.encode(np.stack(self._pixels), self._sample_ids[self.rows[-len(self._pixels) :]])
        self.latents.append(binary_rows(latents))
        self.shape, self._pixels = latents.shape[1:], []
