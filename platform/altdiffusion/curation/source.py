"""LAION's Parquet parts: what is where (planning, from footers only) and one shape for all their variants.

LAION published the same table in several spellings (FACTS 2): column names in upper or lower case, sizes as int32,
int64 or double, null scores, WIDTH and HEIGHT swapped in the base release, `hash` in the joined sets only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mmh3
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.curation.config import SourceConfig
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import unit_id
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.ledger import Unit

# Spellings of each column, lower case; a part may use any one of them.
ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url",),
    "caption": ("text", "caption", "alt_text"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "similarity": ("similarity",),
    "source_language": ("language", "lang"),
    "sample_id": ("hash",),
    "pwatermark": ("pwatermark",),
    "punsafe": ("punsafe",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
}
_BASE = ("url", "caption", "width", "height", "similarity")
REQUIRED: dict[str, tuple[str, ...]] = {
    "laion-base": _BASE,
    "laion-joined": (*_BASE, "sample_id", "pwatermark", "punsafe"),
    "laion-aesthetic": (*_BASE, "sample_id", "pwatermark", "punsafe", "aesthetic"),
}
_TEXT = ("url", "caption", "source_language")
_SCORES = ("similarity", "pwatermark", "punsafe", "aesthetic")
# gcld3 says `iw` for Hebrew and marks Latin transcriptions; both are normalised to plain ISO 639 codes.
_LABELS = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi", "zh-cn": "zh", "zh-tw": "zh"}
_MAX_FOOTER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a source: its footer says all that planning needs."""

    uri: str
    name: str
    digest: str
    """SHA-256 of size and footer bytes (row counts, offsets, statistics): the identity without reading the rows."""
    group_rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SourceScan:
    """A source as found: its parts in the order of their names, and its reference for manifests."""

    config: SourceConfig
    parts: tuple[Part, ...]

    @property
    def ref(self) -> Ref:
        entries = [[part.name, part.digest] for part in self.parts]
        return Ref("source", self.config.name, files.sha256_hex(files.canonical_json(entries)))

    @property
    def rows(self) -> int:
        return sum(sum(part.group_rows) for part in self.parts)


def scan_source(config: SourceConfig) -> SourceScan:
    """Reads the footers of all parts.

    Raises:
        AltDiffusionError: no file matches, a part is unreadable or truncated, lacks a column, or there is no row.
    """
    fs, pattern = files.filesystem(config.uri)
    fs.invalidate_cache()
    paths = sorted(str(path) for path in fs.glob(pattern))
    what = f"source {config.name} ({config.uri})"
    if not paths:
        raise AltDiffusionError(what, "matches no file", "check the glob in the config")
    parts = tuple(_scan_part(fs, fs.unstrip_protocol(path), path, config) for path in paths)
    scan = SourceScan(config=config, parts=parts)
    if scan.rows == 0:
        raise AltDiffusionError(what, f"has no rows in its {len(parts)} parts", "give a source with links in it")
    return scan


def _scan_part(fs: Any, uri: str, path: str, config: SourceConfig) -> Part:
    name = path.rsplit("/", 1)[-1]
    remedy = "fetch this part again, or leave it out of the glob"
    with fs.open(path, "rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise AltDiffusionError(f"source part {uri}", f"is no Parquet file ({size} bytes)", remedy)
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= min(size - 12, _MAX_FOOTER):
            raise AltDiffusionError(f"source part {uri}", "is truncated or no Parquet file (no footer)", remedy)
        file.seek(size - 8 - length)
        footer = file.read(length)
        try:
            file.seek(0)
            parquet = pq.ParquetFile(file)
            metadata, schema = parquet.metadata, parquet.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise AltDiffusionError(f"source part {uri}", f"has a damaged footer ({_line(error)})", remedy) from error
    resolve_columns(schema, config, uri)
    return Part(
        uri=uri,
        name=name,
        digest=files.sha256_hex(size.to_bytes(8, "little") + footer),
        group_rows=tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def resolve_columns(schema: pa.Schema, config: SourceConfig, uri: str) -> dict[str, str]:
    """Our column names -> the part's.

    Raises:
        AltDiffusionError: a column the preset promises is missing or of a type that cannot hold it, or two columns
            claim to be the same one.
    """
    found: dict[str, str] = {}
    for column in schema.names:
        ours = next((name for name, spellings in ALIASES.items() if column.lower() in spellings), None)
        if ours is None:
            continue
        if ours in found:
            raise AltDiffusionError(
                f"source part {uri}", f"has two columns for {ours}: {found[ours]!r}, {column!r}", "drop one of them"
            )
        found[ours] = column
    for name in REQUIRED[config.preset]:
        if name not in found:
            raise AltDiffusionError(
                f"source part {uri}",
                f"lacks column {ALIASES[name][0].upper()!r}; it has {', '.join(schema.names)}",
                f"choose the preset that this source has (now {config.preset}), or mend the part",
            )
    for name, column in found.items():
        dtype = schema.field(column).type
        if pa.types.is_dictionary(dtype):
            dtype = dtype.value_type
        text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)
        number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
        good = text if name in _TEXT else pa.types.is_signed_integer(dtype) if name == "sample_id" else number
        if not good and not pa.types.is_null(dtype):
            wanted = "text" if name in _TEXT else "a signed whole number" if name == "sample_id" else "a number"
            raise AltDiffusionError(
                f"source part {uri}", f"column {column!r} is {dtype}, not {wanted}", "mend the part or its schema"
            )
    return found


def plan_select(scan: SourceScan) -> list[Unit]:
    """Units of a source, in order: neighbouring row groups up to `rows_per_unit`; a larger row group is cut up."""
    units: list[Unit] = []
    for part in scan.parts:
        for start, stop in _ranges(part.group_rows, scan.config.rows_per_unit):
            units.append(_unit(len(units), part, start, stop))
    return units


def _ranges(group_rows: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for rows in group_rows:
        if stop > start and stop + rows - start > limit:
            yield start, stop
            start = stop
        stop += rows
        while stop - start > limit:
            yield start, start + limit
            start += limit
    if stop > start:
        yield start, stop


def _unit(index: int, part: Part, start: int, stop: int) -> Unit:
    payload = {
        "uri": part.uri,
        "start": start,
        "stop": stop,
        "input_digest": files.sha256_hex(files.canonical_json([part.digest, start, stop])),
    }
    return Unit(id=unit_id(index, part.digest, start, stop), index=index, payload=payload)


def read_rows(uri: str, start: int, stop: int, config: SourceConfig) -> pa.Table:
    """Rows `start` to `stop` of a part, normalised; only the row groups that hold them are read, as a stream.

    Raises:
        AltDiffusionError: the part is gone, shorter than its footer said, or damaged.
    """
    fs, path = files.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            columns = resolve_columns(parquet.schema_arrow, config, uri)
            table = pa.Table.from_batches(
                list(_batches(parquet, start, stop, list(columns.values()))),
                schema=pa.schema([parquet.schema_arrow.field(name) for name in columns.values()]),
            )
    except (FileNotFoundError, pa.ArrowException, OSError) as error:
        raise AltDiffusionError(
            f"source part {uri}",
            f"cannot be read ({_line(error)})",
            "fetch this part again, or leave it out of the glob",
        ) from error
    if table.num_rows != stop - start:
        raise AltDiffusionError(
            f"source part {uri}",
            f"has {table.num_rows} of the rows {start}..{stop} that were planned",
            "it changed since planning: run the job again",
        )
    rows = normalise(table.rename_columns(list(columns)), swapped_sizes=config.sizes_are_swapped)
    if config.language is None:
        return rows
    labels = pc.fill_null(rows["source_language"], config.language)
    return rows.set_column(rows.column_names.index("source_language"), "source_language", labels)


def _batches(parquet: pq.ParquetFile, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    groups: list[int] = []
    offset = first = 0
    for index in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(index).num_rows
        if offset < stop and offset + rows > start:
            if not groups:
                first = offset
            groups.append(index)
        offset += rows
    position = first
    for batch in parquet.iter_batches(batch_size=65536, row_groups=groups, columns=columns):
        low, high = max(start - position, 0), min(stop - position, batch.num_rows)
        if low < high:
            yield batch.select(columns).slice(low, high - low)
        position += batch.num_rows
        if position >= stop:
            return


def normalise(table: pa.Table, *, swapped_sizes: bool) -> pa.Table:
    """One shape for every variant.

    Args:
        table: columns under our names (`resolve_columns`), any of LAION's types; optional ones may be missing.
        swapped_sizes: whether the column named width holds the height.

    Returns:
        sample_id int64; url, caption, source_language string (invalid UTF-8 replaced); width, height int32 (null
        where missing, not positive or absurd); scores float64, null for NaN, in the source's own precision, so that a
        strict comparison gives what the source's publisher got.
    """
    rows = table.num_rows
    columns: dict[str, Any] = {}
    for name in _TEXT:
        columns[name] = _text(table[name]) if name in table.column_names else pa.nulls(rows, pa.string())
    for name in ("width", "height"):
        columns[name] = _size(table[name]) if name in table.column_names else pa.nulls(rows, pa.int32())
    if swapped_sizes:
        columns["width"], columns["height"] = columns["height"], columns["width"]
    for name in _SCORES:
        columns[name] = _score(table[name]) if name in table.column_names else pa.nulls(rows, pa.float64())
    given = table["sample_id"].cast(pa.int64()) if "sample_id" in table.column_names else None
    columns["sample_id"] = _sample_ids(given, columns["url"], columns["caption"])
    columns["source_language"] = _labels(columns["source_language"])
    columns["expected_hash"] = pa.nulls(rows, pa.string())
    return pa.table(columns)


def hash_id(url: str, caption: str) -> int:
    """LAION's row id: the first signed 64-bit half of MurmurHash3 x64 128, seed 0, of url + text."""
    return mmh3.hash64(url + caption)[0]


def _sample_ids(given: Any, url: pa.ChunkedArray, caption: pa.ChunkedArray) -> pa.ChunkedArray:
    """The source's hashes; where it has none, computed. MurmurHash has no batch call, so this loop is per row."""
    if given is not None and given.null_count == 0:
        return given
    joined = pc.binary_join_element_wise(pc.fill_null(url, ""), pc.fill_null(caption, ""), "")
    if given is None:
        return pa.chunked_array([pa.array([mmh3.hash64(text)[0] for text in joined.to_pylist()], pa.int64())])
    missing = pc.is_null(given)
    computed = pa.array([mmh3.hash64(text)[0] for text in joined.filter(missing).to_pylist()], pa.int64())
    return pc.replace_with_mask(given.combine_chunks(), missing.combine_chunks(), computed)


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        return values.cast(pa.binary()).cast(pa.string())  # the cast from binary checks the UTF-8
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        return pa.chunked_array(
            [pa.array([None if item is None else item.decode("utf-8", "replace") for item in raw], pa.string())]
        )


def _size(values: pa.ChunkedArray) -> pa.ChunkedArray:
    numbers = values.cast(pa.float64())
    good = pc.and_(pc.greater_equal(numbers, 1.0), pc.less(numbers, 2.0**31))
    return pc.if_else(good, pc.floor(pc.if_else(good, numbers, 0.0)), None).cast(pa.int32())


def _score(values: pa.ChunkedArray) -> pa.ChunkedArray:
    numbers = values.cast(pa.float64())
    return pc.if_else(pc.is_nan(numbers), None, numbers)


def _labels(values: pa.ChunkedArray) -> pa.ChunkedArray:
    lowered = pc.utf8_trim_whitespace(pc.utf8_lower(values))
    lowered = pc.replace_substring(lowered, "_", "-")
    lowered = pc.if_else(pc.is_in(lowered, pa.array(["", "unknown", "und", "none"])), None, lowered)
    for label, code in _LABELS.items():
        lowered = pc.if_else(pc.equal(lowered, label), code, lowered)
    return pc.replace_substring_regex(lowered, "-latn$", "")
