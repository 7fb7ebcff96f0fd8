"""Signed copies of generated images: of files, or of all images of a dataset. What is there is never overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from altdiffusion.documents.signing import ENDINGS, Signer, media_type
from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.extract import read_file
from altdiffusion.image_files.names import file_stem
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.tombstones import COLUMNS, read_tombstones


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """The result of signing many images."""

    images: int
    taken_down: int = 0
    """Rows that were left out because they were taken down."""


def sign_files(signer: Signer, paths: list[str], folder: str) -> Signed:
    """Write signed copies of image files into a folder, under their own names.

    Raises:
        AltDiffusionError: two files have one name, a copy is already there, or a file cannot be signed.
    """
    names = [os.path.basename(path) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise AltDiffusionError(f"file name {name}", "was given twice", "sign the files of one folder per command")
    for path, name in zip(paths, names, strict=True):
        _write(folder, name, signer.sign(read_file(path), path))
    return Signed(images=len(paths))


def sign_version(signer: Signer, version: Version, folder: str) -> Signed:
    """Write the signed images of a version of `generations` into a folder, as `<id>-<seed>.<format>`.

    Rows that were taken down are left out.

    Raises:
        AltDiffusionError: the version holds other rows, a copy is already there, or an image cannot be signed.
    """
    if version.manifest.kind != "generations":
        raise AltDiffusionError(
            version.ref.short,
            f"is of kind {version.manifest.kind}",
            "name a dataset of kind generations, or image files",
        )
    images = gone = 0
    for row in _rows(version):
        if row is None:
            gone += 1
            continue
        stem = file_stem(row)
        _write(folder, f"{stem}.{ENDINGS[media_type(row['image'], stem)]}", signer.sign(row["image"], stem))
        images += 1
    return Signed(images=images, taken_down=gone)


def _rows(version: Version) -> Iterator[dict[str, Any] | None]:
    """Yield id, seed and image of each row; None for a row that was taken down."""
    tombstones = read_tombstones(version.lake_uri)
    names = ["id", "seed", "image", *(name for name in COLUMNS if name in version.schema_names)]
    for index in range(len(version.shards)):
        table: pa.Table = version.read_shard(index, names)
        listed = tombstones.names(table)
        for batch, start in _batches(table):
            for place, row in enumerate(batch.to_pylist(), start):
                yield None if listed[place] else row


def _batches(table: pa.Table) -> Iterator[tuple[pa.RecordBatch, int]]:
    start = 0
    for batch in table.to_batches(max_chunksize=100):
        yield batch, start
        start += batch.num_rows


def _write(folder: str, name: str, data: bytes) -> None:
    uri = files.join(folder, name)
    if files.exists(uri):
        raise AltDiffusionError(f"file {uri}", "is already there", "name a new folder: no file is overwritten")
    files.write_atomic(uri, data)
