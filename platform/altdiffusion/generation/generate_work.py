"""Generation as units: image ranges of a `prompts` version in, images out.

A unit's images go into shards whose size follows from the number of all images alone, and a unit is a run of whole
shards. So units can be cut for any pool, and the version is the same. Finished images are found by row key and not
drawn again, whatever prompts file, unit or config they were drawn for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.reject_reasons import Reason, rejects_table
from altdiffusion.execution.units import Unit
from altdiffusion.generation.drop_reasons import IMAGE_BLOCKED, NOT_FINITE
from altdiffusion.generation.finished import IMAGES, Finished
from altdiffusion.generation.image_rows import count_batches, file_records, image_counts, image_rows, requests_of
from altdiffusion.generation.model import (
    Model,
    check_content,
    check_prompt_windows,
    check_sampling,
    check_speed,
    size_multiple,
)
from altdiffusion.generation.prompt_regions import regions_of
from altdiffusion.generation.prompts import ROWS_PER_SHARD
from altdiffusion.generation.settings import GenerateConfig, ImageFormat, SamplerName
from altdiffusion.generation.window_plan import check_windows
from altdiffusion.image_files.embed import save_options
from altdiffusion.image_files.phash import phash_rgb
from altdiffusion.image_files.record import FileRecord
from altdiffusion.records import GENERATIONS
from altdiffusion.storage import files
from altdiffusion.storage.cleansing import IMAGE, REASON
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.tombstones import read_tombstones

if TYPE_CHECKING:
    from altdiffusion.generation.image_request import Drawn
    from altdiffusion.generation.sampler import Sampler

Check = Callable[[Sequence[bytes]], list[str]]
"""Returns for each encoded image why it is refused, such as `nsfw 0.91`; an empty text for those that are not."""
Problem = tuple[Reason, str]
"""Why a row has no image: the reason of its reject, and the detail."""
ENCODERS = 4
"""Threads that encode images while the next batch is drawn."""
MAX_SHARD_ROWS = 256
SHARDS = 64
"""Least number of shards of a version that has as many images: so many workers can share the smallest job."""


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image."""

    data: bytes
    sha256: str
    format: str
    vae_dtype: str | None
    perceptual_hash: int | None


class GenerateWork(RangeWork):
    """The work on an image range: its images become shards of kind `generations`, and image files.

    Args:
        finished: index of images that are not drawn again.
        checker: loads, in the worker, what refuses images; None refuses none.
    """

    def __init__(
        self,
        lake_uri: str,
        dataset: str,
        model: Model,
        config: GenerateConfig,
        finished: Finished | None = None,
        checker: Callable[[], Check] | None = None,
    ) -> None:
        super().__init__(lake=lake_uri, dataset=dataset)
        self._model = model
        self._config = config
        self._finished = finished
        self._checker = checker
        self._check: Check | None = None
        self._sampler: Any = None

    def setup(self) -> None:
        """Load the image checker, and the model once its content is known to be what was planned with."""
        from altdiffusion.generation.loading import load_sampler

        check_content(self._model)
        self._check = self._checker() if self._checker is not None else None
        self._sampler = load_sampler(self._model, self._config)

    def run(self, unit: Unit) -> UnitRecord:
        """Draw the images of one unit that are not finished yet, and write all of them."""
        start, stop = int(unit.payload["start"]), int(unit.payload["stop"])
        prompts = self.version_of(unit).read_shard(int(unit.payload["shard"]))
        rows = image_rows(prompts, start, stop, self._config, self._model)
        images = self._finished_images(unit, rows)
        problems = self._refused(images)
        problems |= self._draw(unit, rows, images, {*images, *problems})
        if self._config.file_naming == "by_hash":
            folder = images_folder(self.lake, self.dataset)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda image: _write_image(folder, image), images.values()))
        shard_rows = int(unit.payload["shard_rows"])
        return finish_unit(
            self.output,
            unit,
            rows_in=rows.num_rows,
            accepted=(
                self._table(rows.slice(first, shard_rows), images) for first in range(0, rows.num_rows, shard_rows)
            ),
            rejects=[_rejects(unit, rows, problems)],
        )

    def recorded(self, unit: Unit) -> None:
        """Remove the spill files of a unit that is recorded now."""
        Spill(self.output).remove(unit.id)

    def _finished_images(self, unit: Unit, rows: pa.Table) -> dict[str, Image]:
        """Return the finished images of some rows by row key; one with another hash than its bytes is not taken."""
        wanted = set(rows["row_key"].to_pylist())
        found: dict[str, Image] = {}
        for table in self._finished_tables(unit, sorted(wanted)):
            places = np.flatnonzero([key in wanted and key not in found for key in table["row_key"].to_pylist()])
            for row in table.take(pa.array(places)).to_pylist():
                known = (row["vae_dtype"], row["perceptual_hash"])
                image = Image(row["image"], row["image_sha256"], row["image_format"] or "png", *known)
                if files.sha256_hex(image.data) == image.sha256 and image.format in get_args(ImageFormat):
                    found[row["row_key"]] = image
        return found

    def _finished_tables(self, unit: Unit, keys: Sequence[str]) -> Iterator[pa.Table]:
        yield from Spill(self.output).tables(unit.id, IMAGES)
        if self._finished is not None:
            yield from self._finished.tables(self.output, keys)

    def _refused(self, images: dict[str, Image]) -> dict[str, Problem]:
        """Remove the images that were taken down or that the checker refuses, and return why, by key.

        Nothing of them has been written yet.
        """
        gone = self._taken_down(images)
        if self._check is None or not images:
            return gone
        details = self._check([one.data for one in images.values()])
        refused = {key: detail for key, detail in zip(images, details, strict=True) if detail}
        for key in refused:
            del images[key]
        return gone | {key: (IMAGE_BLOCKED, detail) for key, detail in refused.items()}

    def _taken_down(self, images: dict[str, Image]) -> dict[str, Problem]:
        digests = pa.array([one.sha256 for one in images.values()], pa.string())
        listed = read_tombstones(self.lake).holds_images(digests).tolist()
        gone = [key for key, named in zip(images, listed, strict=True) if named]
        return {key: (Reason(REASON), f"{IMAGE}{images.pop(key).sha256}") for key in gone}

    def _draw(
        self, unit: Unit, rows: pa.Table, images: dict[str, Image], settled: Collection[str]
    ) -> dict[str, Problem]:
        """Draw the rows whose key is not settled, add their images, and return the problems of others by key.

        A batch is encoded and spilled while the next one is drawn. So a stop loses one finished batch at most.
        """
        keys = rows["row_key"].to_pylist()
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in settled}
        places = sorted(first.values())
        chosen_rows = rows.take(pa.array(places, pa.int64()))
        requests = requests_of(chosen_rows)
        records = file_records(chosen_rows, self._config, self._model)
        problems: dict[str, Problem] = {}
        refused: dict[str, Problem] = {}
        left = len(requests)
        with ThreadPoolExecutor(ENCODERS) as encoders, self._writer() as writer:
            writing: Future[None] | None = None
            for chosen, drawn in self._sampler.draw_rows(requests) if requests else ():
                left -= len(chosen)
                encoded = {
                    keys[places[place]]: encoders.submit(self._encode, one, records.get(keys[places[place]]))
                    for place, one in zip(chosen, drawn, strict=True)
                    if not one.problem
                }
                problems |= {
                    keys[places[place]]: (NOT_FINITE, one.problem)
                    for place, one in zip(chosen, drawn, strict=True)
                    if one.problem
                }
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._keep, unit, encoded, images, refused, spilled=left > 0)
            if writing is not None:
                writing.result()
        return problems | refused

    def _writer(self) -> ThreadPoolExecutor:
        """Return the thread that checks and writes finished batches; sums are split there as in the main thread."""
        import torch

        return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(self._config.threads,))

    def _keep(
        self,
        unit: Unit,
        encoded: dict[str, Future[Image]],
        images: dict[str, Image],
        refused: dict[str, Problem],
        *,
        spilled: bool,
    ) -> None:
        """Add a batch to the unit's images, but for those that are refused; write a spill file of it if asked to."""
        done = {key: future.result() for key, future in encoded.items()}
        refused |= self._refused(done)
        images |= done
        if spilled and done:
            values = [
                (key, one.data, one.sha256, one.format, one.vae_dtype, one.perceptual_hash) for key, one in done.items()
            ]
            table = pa.Table.from_pylist([dict(zip(IMAGES.names, row, strict=True)) for row in values], schema=IMAGES)
            Spill(self.output).add(unit.id, table)

    def _encode(self, drawn: Drawn, record: FileRecord | None) -> Image:
        config = self._config
        data = encode_image(drawn.image, config.image_format, config.image_quality, record)
        return Image(data, files.sha256_hex(data), config.image_format, drawn.vae_dtype, phash_rgb(drawn.image))

    def _table(self, rows: pa.Table, images: dict[str, Image]) -> pa.Table:
        """Return those of some rows that have an image, as a table of records.GENERATIONS."""
        sampler: Sampler = self._sampler
        rows = rows.filter(pa.array([key in images for key in rows["row_key"].to_pylist()], pa.bool_()))
        found = [images[key] for key in rows["row_key"].to_pylist()]
        texts = [[row["prompt"], *(one.prompt for one in regions_of(row["regions"]))] for row in rows.to_pylist()]
        readings = [sampler.contexts.read(some) for some in texts]
        columns: dict[str, Any] = {
            **{name: rows[name] for name in rows.column_names},
            "image": pa.array([one.data for one in found], pa.binary()),
            "image_sha256": pa.array([one.sha256 for one in found], pa.string()),
            "image_format": pa.array([one.format for one in found], pa.string()),
            "checkpoint": pa.array([str(self._model.ref)] * len(found), pa.string()),
            "prompt_tokens": pa.array([one.tokens[0] for one in readings], pa.int32()),
            "truncated": pa.array([bool(one.truncated.any()) for one in readings], pa.bool_()),
            "region_tokens": pa.array([one.tokens[1:].tolist() or None for one in readings], pa.list_(pa.int32())),
            "vae_dtype": pa.array([one.vae_dtype for one in found], pa.string()),
            "perceptual_hash": pa.array([one.perceptual_hash for one in found], pa.int64()),
        }
        return pa.table([columns[field.name] for field in GENERATIONS], schema=GENERATIONS)


def generation_units(prompts: Version, model: Model, config: GenerateConfig, workers: int = 1) -> list[Unit]:
    """Return the units of `GenerateWork`, cut so that all workers have some.

    Their ids follow from their rows, the model's content among them, and not from the file: rows that are appended to
    a file leave the units before them recorded.

    Args:
        workers: largest size of the pool.

    Raises:
        AltDiffusionError: a prompt requires a size that the model cannot draw, or its noise schedule does not support
            the sampler or the number of steps.
    """
    check_speed(model, config)
    multiple = size_multiple(model)
    check_windows(config, model)
    check_prompt_windows(model, config.prompt_windows)
    samplings: set[tuple[SamplerName, int]] = set()
    total = 0
    for index in range(len(prompts.shards)):
        table = prompts.read_shard(index, ("id", "width", "height", "count", "sampler", "steps"))
        samplings |= {
            (row["sampler"] or config.sampler, row["steps"] or config.steps)
            for row in table.group_by(["sampler", "steps"]).aggregate([]).to_pylist()
        }
        _check_sizes(prompts, table, multiple)
        total += int(image_counts(table, config).sum())
    for sampler, steps in sorted(samplings):
        check_sampling(model, sampler, steps)
        config.speed.check_steps(steps, "a prompt")
    shard_rows, size = rows_per_shard(total), unit_rows(total, config, workers)
    units: list[Unit] = []
    for index in range(len(prompts.shards)):
        table = prompts.read_shard(index)
        count = int(image_counts(table, config).sum())
        for start in range(0, count, size):
            stop = min(start + size, count)
            rows = image_rows(table, start, stop, config, model)
            reads = [files.sha256_hex(files.canonical_json(rows.to_pylist())), shard_rows, str(model.ref)]
            payload = {
                "version": str(prompts.ref), "shard": index, "start": start, "stop": stop, "shard_rows": shard_rows
            }  # fmt: skip
            units.append(new_unit(len(units), reads, payload))
    return units


def describe_work(prompts: pa.Table, config: GenerateConfig, workers: int) -> str:
    """Return one line for a dry run: how many images are drawn, in how many units and batches.

    Images that are finished already are among them: which they are is known when the model has been read.

    Args:
        prompts: with the columns of `records.PROMPTS`.
        workers: largest size of the pool.
    """
    images = int(image_counts(prompts, config).sum())
    size = unit_rows(images, config, workers)
    units = batches = 0
    for first in range(0, prompts.num_rows, ROWS_PER_SHARD):
        part = prompts.slice(first, ROWS_PER_SHARD)
        count = int(image_counts(part, config).sum())
        for start in range(0, count, size):
            units += 1
            batches += count_batches(part, start, min(start + size, count), config)
    more = " or more" if config.prompt_windows > 1 else ""  # long prompts have batches of their own
    return f"draws  {images:,} images in {units:,} units, {batches:,}{more} batches of up to {config.batch_rows:,}"


def unit_rows(images: int, config: GenerateConfig, workers: int) -> int:
    """Return the number of images per unit: `rows_per_unit`, in whole shards."""
    shard_rows = rows_per_shard(images)
    return -(-rows_per_unit(images, config, workers) // shard_rows) * shard_rows


def rows_per_shard(images: int) -> int:
    """Return the number of rows per shard: a power of two that follows from the number of all images alone."""
    return min(1 << max((images // SHARDS).bit_length() - 1, 0), MAX_SHARD_ROWS)


def rows_per_unit(images: int, config: GenerateConfig, workers: int) -> int:
    """Return the number of images per unit: four units per worker, of whole batches, while there are enough images.

    Four even out that workers start and draw at different speeds. One worker gets the largest units, because equal
    sizes and settings fill batches within a unit only.
    """
    if workers == 1:
        return config.rows_per_unit
    share = -(-images // workers)  # one unit per worker
    if share <= config.batch_rows:
        return max(min(share, config.rows_per_unit), 1)
    quarter = -(-images // (4 * workers))
    whole = max(-(-quarter // config.batch_rows), 1) * config.batch_rows
    return min(whole, config.rows_per_unit)


def _check_sizes(prompts: Version, sizes: pa.Table, multiple: int) -> None:
    wrong = [
        pc.not_equal(pc.multiply(pc.divide(sizes[side], multiple), multiple), sizes[side])
        for side in ("width", "height")
    ]
    bad = sizes.filter(pc.or_(*wrong)).slice(0, 1).to_pylist()
    if bad:
        raise AltDiffusionError(
            f"prompt {bad[0]['id']} of {prompts.ref.short}",
            f"requires {bad[0]['width']} x {bad[0]['height']} pixels; the model draws multiples of {multiple}",
            "change its width and height",
        )


def _rejects(unit: Unit, rows: pa.Table, problems: dict[str, Problem]) -> pa.Table:
    """Return the rows that have a problem as a REJECTS table."""
    places = [place for place, key in enumerate(rows["row_key"].to_pylist()) if key in problems]
    gone = rows.take(pa.array(places, pa.int64())).to_pylist()
    found = [problems[row["row_key"]] for row in gone]
    return rejects_table(
        unit.id,
        row=places,
        language=[row["language"] for row in gone],
        reason=[reason for reason, _ in found],
        detail=[
            f"prompt {row['id']}, seed {row['seed']}: {detail}" for row, (_, detail) in zip(gone, found, strict=True)
        ],
    )


def images_folder(lake_uri: str, dataset: str) -> str:
    """Return the URI of the folder of image files, <sha256>.<format>, next to a generations dataset's shards."""
    return files.within(lake_uri, "datasets", dataset, "images")


def encode_image(
    image: NDArray[np.uint8], image_format: ImageFormat, quality: int = 95, record: FileRecord | None = None
) -> bytes:
    """Return uint8 [H, W, 3] encoded, with a record if there is one; WebP of quality 100 is lossless, as PNG is."""
    from PIL import Image as PillowImage

    options: dict[str, Any] = {
        "png": {},
        "jpg": {"quality": quality, "subsampling": 0 if quality >= 90 else 2},
        "webp": {"lossless": quality == 100, "quality": quality},
    }[image_format]
    options |= save_options(record, image_format) if record is not None else {}
    buffer = io.BytesIO()
    name = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[image_format]
    PillowImage.fromarray(image, "RGB").save(buffer, format=name, **options)
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return PNG bytes of uint8 [H, W, 3]."""
    return encode_image(image, "png")


def decode_images(images: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return the pixels of encoded images of one size, uint8 [N, H, W, 3]."""
    from PIL import Image as PillowImage

    return np.stack([np.asarray(PillowImage.open(io.BytesIO(image)).convert("RGB")) for image in images])


def _write_image(folder: str, image: Image) -> None:
    uri = files.join(folder, f"{image.sha256}.{image.format}")
    if not files.exists(uri):
        files.write_atomic(uri, image.data)
