"""Export of images for other tools: the output formats of img2dataset, by its own sample writers, and `imagefolder`.

    webdataset   00000.tar (key.jpg, key.txt and key.json per image), 00000.parquet, 00000_stats.json
    files        00000/ (the same three files per image), 00000.parquet, 00000_stats.json
    parquet      00000.parquet (with the images), 00000_stats.json
    imagefolder  00000/ (the images), metadata.jsonl: what `datasets.load_dataset("imagefolder")` reads

Columns have img2dataset's names where it has the same column (`_Layout.names`); all others keep theirs. The caption of
a generated image is its prompt, its key is readable, and its JSON has the image's own record. As with img2dataset, a
shard's statistics are written last: a shard without them is not complete. `metadata.jsonl` is written last of all.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.extract import read_carried
from altdiffusion.image_files.names import sample_key
from altdiffusion.image_files.row_export import SHARD_DIGITS, Exported, kept_tables, write_rows
from altdiffusion.records import GENERATIONS, IMAGES
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version

ExportFormat = Literal["webdataset", "files", "parquet", "imagefolder"]
ROWS_PER_SHARD = 10_000
"""img2dataset's default `number_sample_per_shard`."""
_BATCH_ROWS = 100
_APART = ("image", "image_format")
_STATUS = ("key", "status", "error_message")


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the rows of a kind are written."""

    columns: pa.Schema
    names: Mapping[str, str]
    """img2dataset's names of our columns, where they differ."""
    row_name: str
    """Column that names a row in errors."""
    is_generated: bool

    @property
    def schema(self) -> pa.Schema:
        """The columns of the metadata."""
        ours = [
            pa.field(self.names.get(field.name, field.name), field.type)
            for field in self.columns
            if field.name not in _APART
        ]
        added = ["record"] if self.is_generated else []
        return pa.schema([*ours, *(pa.field(name, pa.string()) for name in (*added, *_STATUS))])


_COLLECTED = {
    "width": "source_width",
    "height": "source_height",
    "stored_width": "width",
    "stored_height": "height",
    "image_sha256": "sha256",
}
_LAYOUTS = {
    "images": _Layout(columns=IMAGES, names=_COLLECTED, row_name="sample_id", is_generated=False),
    "generations": _Layout(
        columns=GENERATIONS, names={"prompt": "caption", "image_sha256": "sha256"}, row_name="id", is_generated=True
    ),
}


def export_images(
    version: Version, output: str, format: ExportFormat, *, rows_per_shard: int = ROWS_PER_SHARD
) -> Exported:
    """Write every row of a version into an empty or new folder, but none that was taken down.

    Memory holds one shard of the version, and 100 rows more. Kinds other than images and generations are written as
    plain Parquet (`image_files.row_export`).

    Args:
        output: a folder; any URI of fsspec.
        rows_per_shard: rows of each shard that is written, the last one excepted.

    Raises:
        AltDiffusionError: the version does not hold images and the format is for them, or it holds images of several
            formats; the folder is not empty or cannot be written; a shard is damaged, or does not hold as many rows as
            the manifest states.
    """
    layout = _LAYOUTS.get(version.manifest.kind)
    if layout is None and format != "parquet":
        raise AltDiffusionError(
            version.ref.short,
            f"is of kind {version.manifest.kind}, which has no images for the format {format}",
            f"use --format parquet, or name a dataset of kind {' or '.join(_LAYOUTS)} (`altdiffusion dataset list`)",
        )
    if rows_per_shard < 1:
        raise AltDiffusionError("--rows-per-shard", f"is {rows_per_shard}", "give a number from 1 on")
    _check_place(version, output)
    if files.list_names(output):
        raise AltDiffusionError(
            f"folder {output}",
            "is not empty",
            "name a new folder; if an earlier export into this one was interrupted, remove it first",
        )
    fs, path = files.filesystem(output)
    with files.naming(output, "writing"):
        fs.makedirs(path, exist_ok=True)
        if layout is None:
            exported = write_rows(version, output.rstrip("/"), rows_per_shard)
        else:
            exported = _export(version, layout, output.rstrip("/"), format, rows_per_shard)
    found = exported.rows + exported.taken_down
    if found != version.rows:
        raise AltDiffusionError(
            version.ref.short,
            f"holds {found:,} rows, its manifest states {version.rows:,}",
            "run `altdiffusion dataset verify` on it, and remove the exported folder",
        )
    return exported


def _check_place(version: Version, output: str) -> None:
    """Refuse a file, and a folder of the lake: takedown and verification know only what jobs write there."""
    if files.is_local(output) and os.path.isfile(files.local_path(output)):
        raise AltDiffusionError(f"folder {output}", "is a file", "name a new folder")
    if f"{files.anchored(output)}/".startswith(f"{files.anchored(version.lake_uri)}/"):
        raise AltDiffusionError(
            f"folder {output}",
            f"is in the lake {version.lake_uri}",
            "name a folder elsewhere, which takedown leaves alone",
        )


def _export(version: Version, layout: _Layout, output: str, format: ExportFormat, rows_per_shard: int) -> Exported:
    gone: list[int] = []
    rows, total = _rows(kept_tables(version, gone)), 0
    if format == "imagefolder":
        total = _write_image_folder(rows, layout, output, rows_per_shard)
        return Exported(rows=total, shards=math.ceil(total / rows_per_shard), taken_down=sum(gone))
    for number in itertools.count():
        first = next(rows, None)
        if first is None:
            return Exported(rows=total, shards=number, taken_down=sum(gone))
        shard = itertools.chain([first], itertools.islice(rows, rows_per_shard - 1))
        total += _write_shard(number, shard, first["image_format"], layout, output, format, rows_per_shard)
    raise AssertionError("unreachable")


def _rows(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    for table in tables:
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            for row in batch.to_pylist():
                yield {**row, "image_format": row["image_format"] or "png"}


def _write_shard(
    number: int,
    rows: Iterable[dict[str, Any]],
    encode_format: str,
    layout: _Layout,
    output: str,
    format: ExportFormat,
    rows_per_shard: int,
) -> int:
    """Write one shard; return how many rows it has."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # a request to a registry when img2dataset is imported
    from img2dataset.logger import CappedCounter, write_stats
    from img2dataset.writer import FilesSampleWriter, ParquetSampleWriter, WebDatasetSampleWriter

    writers = {"webdataset": WebDatasetSampleWriter, "files": FilesSampleWriter, "parquet": ParquetSampleWriter}
    start, count = time.time(), 0
    writer = writers[format](number, output, True, SHARD_DIGITS, layout.schema, encode_format)
    for row in rows:
        if row["image_format"] != encode_format:
            raise AltDiffusionError(
                f"image {row[layout.row_name]}",
                f"is {row['image_format']}, the first one of its shard is {encode_format}",
                "export datasets of one image format: download them with one `encode_format`, or draw them with one "
                "`image_format`; or use --format imagefolder",
            )
        image, key, meta = _sample(row, layout, number, count, rows_per_shard)
        status = dict(zip(_STATUS, (key, "success", None), strict=True))
        writer.write(image, key, meta["caption"], {**meta, **status})
        count += 1
    writer.close()
    successes = CappedCounter.load({"success": count})
    write_stats(output, number, count, count, 0, 0, start, time.time(), successes, SHARD_DIGITS)
    return count


def _sample(
    row: dict[str, Any], layout: _Layout, number: int, place: int, rows_per_shard: int
) -> tuple[bytes, str, dict[str, Any]]:
    """Return image, key and metadata of a row, by its shard's number and its place there."""
    meta = {layout.names.get(name, name): value for name, value in row.items() if name not in _APART}
    if layout.is_generated:
        record = read_carried(row["image"]).record
        meta["record"] = None if record is None else record.to_json()
        return row["image"], sample_key(row), meta
    # As img2dataset numbers its samples (downloader.compute_key).
    digits = math.ceil(math.log10(rows_per_shard))
    return row["image"], f"{number * 10**digits + place:0{SHARD_DIGITS + digits}d}", meta


def _write_image_folder(rows: Iterable[dict[str, Any]], layout: _Layout, output: str, rows_per_shard: int) -> int:
    """Write images in folders of `rows_per_shard`, then the one file of metadata; return how many rows there are."""
    count = 0
    with tempfile.TemporaryFile() as metadata:
        for count, row in enumerate(rows, 1):
            number, place = divmod(count - 1, rows_per_shard)
            image, key, meta = _sample(row, layout, number, place, rows_per_shard)
            name = f"{number:0{SHARD_DIGITS}d}/{key}.{row['image_format']}"
            files.write_atomic(files.join(output, *name.split("/")), image)
            metadata.write(json.dumps({"file_name": name, **meta}, ensure_ascii=False).encode() + b"\n")
        metadata.seek(0)
        fs, path = files.filesystem(files.join(output, "metadata.jsonl"))
        with fs.open(path, "wb") as file:
            shutil.copyfileobj(metadata, file)
    return count
