"""A parallel corpus: its parts, how they are cut into units, and the rows of a unit.

A part is identified by size, first and last mebibyte (Parquet keeps its footer there), so that a finished job can be
recognised without reading terabytes. Text parts are read once by the driver where units are planned: it counts lines
and notes where every unit begins, so that a worker starts there. In a compressed file it has to unpack up to there.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import CorpusConfig
from altdiffusion.curation.links.source_columns import utf8_text
from altdiffusion.curation.parts import find_parts
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE

ROWS = pa.schema([("caption", pa.string()), ("translation", pa.string()), ("score", pa.float32())])
"""Rows as read: null where a line has no such column, or is not UTF-8."""
_AT_ONCE = 65_536
_PIECE = 8 << 20
_EDGE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file, or in `moses` a pair of files."""

    uris: tuple[str, ...]
    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A scanned corpus."""

    config: CorpusConfig
    parts: tuple[Part, ...]

    @property
    def ref(self) -> Ref:
        entries = [[part.name, part.digest] for part in self.parts]
        return Ref("source", self.config.name, files.sha256_hex(files.canonical_json(entries)))


def scan_corpus(config: CorpusConfig) -> Corpus:
    """Find the parts.

    Raises:
        AltDiffusionError: no file matches, or there are not as many translations as English files.
    """
    what = f"corpus {config.name}"
    english = _glob(config.uri, what)
    columns = [english]
    if config.translation_uri is not None:
        columns.append(_glob(config.translation_uri, what))
        if len(columns[1]) != len(english):
            raise AltDiffusionError(
                f"{what} ({config.translation_uri})",
                f"has {len(columns[1])} files for {len(english)} English ones",
                "check the globs: files are paired in the order of their names",
            )
    parts = []
    for uris in zip(*columns, strict=True):
        digest = files.sha256_hex(files.canonical_json([_edges(uri) for uri in uris]))
        parts.append(Part(uris=uris, name=uris[0].rsplit("/", 1)[-1], digest=digest))
    return Corpus(config=config, parts=tuple(parts))


def plan_corpora(corpora: Sequence[Corpus]) -> list[Unit]:
    """Return the units of all corpora, in order: a number of rows of a part, and where they begin."""
    units: list[Unit] = []
    for corpus in corpora:
        config = corpus.config
        for part in corpus.parts:
            starts, rows = _parquet_rows(part, config) if config.format == "parquet" else _text_rows(part, config)
            for number, offsets in enumerate(starts):
                first = number * config.rows_per_unit
                count = min(config.rows_per_unit, rows - first)
                payload = {
                    "corpus": config.name, "uris": list(part.uris), "first": first, "rows": count,
                    "offsets": list(offsets),
                }  # fmt: skip
                units.append(new_unit(len(units), [part.digest, first, count], payload, name=config.name))
    return units


def read_rows(unit: Unit, config: CorpusConfig) -> Iterator[pa.Table]:
    """Return the rows of a unit (ROWS), some at a time.

    Raises:
        AltDiffusionError: a file is shorter than when it was planned, damaged, or lacks a column.
    """
    payload = unit.payload
    first, left = int(payload["first"]), int(payload["rows"])
    tables = (
        _read_parquet(payload["uris"][0], config, first, left)
        if config.format == "parquet"
        else _read_text(payload["uris"], payload["offsets"], config, left)
    )
    for table in tables:
        left -= table.num_rows
        yield table
    if left:
        raise AltDiffusionError(
            f"corpus part {payload['uris'][0]}", f"ends {left:,} rows early", "restore the file, or start the job again"
        )


def _glob(uri: str, what: str) -> list[str]:
    fs, paths = find_parts(uri, what)
    return [str(fs.unstrip_protocol(path)) for path in paths]


def _edges(uri: str) -> str:
    fs, path = files.filesystem(uri)
    size = int(fs.size(path))
    digest = hashlib.sha256(b"%d\n" % size)
    with fs.open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()


def _open_text(uri: str) -> Any:
    fs, path = files.filesystem(uri)
    return fs.open(path, "rb", compression="infer")


def _text_rows(part: Part, config: CorpusConfig) -> tuple[list[tuple[int, ...]], int]:
    """Return where each unit's first line begins, in each file, and the number of lines."""
    counted = [_line_starts(uri, config.rows_per_unit) for uri in part.uris]
    counts = [rows for _, rows in counted]
    if len(set(counts)) > 1:
        raise AltDiffusionError(
            f"corpus part {part.uris[1]}",
            f"has {counts[1]:,} lines, the English file {part.uris[0]} has {counts[0]:,}",
            "give two files whose lines belong together",
        )
    return list(zip(*(starts for starts, _ in counted), strict=True)), counts[0]


def _line_starts(uri: str, every: int) -> tuple[list[int], int]:
    """Return the offsets of lines 0, every, 2 every, ... of the unpacked file, and the number of lines."""
    starts, lines, offset, last = [0], 0, 0, b"\n"
    try:
        with _open_text(uri) as file:
            while piece := file.read(_PIECE):
                at = -1
                to_go = every - lines % every
                newlines = piece.count(b"\n")
                if newlines >= to_go:
                    for _ in range(newlines):
                        at = piece.index(b"\n", at + 1)
                        lines += 1
                        if lines % every == 0:
                            starts.append(offset + at + 1)
                else:
                    lines += newlines
                offset += len(piece)
                last = piece[-1:]
    except (OSError, EOFError, ValueError) as error:
        raise AltDiffusionError(f"corpus part {uri}", f"cannot be read ({error})", "fetch the file again") from error
    if last != b"\n":
        lines += 1
    return [start for start in starts if start < offset], lines


def _parquet_rows(part: Part, config: CorpusConfig) -> tuple[list[tuple[int, ...]], int]:
    with _parquet(part.uris[0]) as file:
        rows = int(file.metadata.num_rows)
        names = [str(value) for value in (config.english, config.translation, config.score) if value is not None]
        missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise AltDiffusionError(
            f"corpus part {part.uris[0]}",
            f"has no column {missing[0]}",
            f"name its columns in the config of corpus {config.name}",
        )
    return [() for _ in range(0, rows, config.rows_per_unit)], rows


class _parquet(ExitStack):
    """An open Parquet file."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def __enter__(self) -> Any:
        super().__enter__()
        fs, path = files.filesystem(self._uri)
        try:
            return pq.ParquetFile(self.enter_context(fs.open(path, "rb")))
        except UNREADABLE as error:
            raise AltDiffusionError(
                f"corpus part {self._uri}", f"is not a readable Parquet file ({error})", "fetch the file again"
            ) from error


def _read_parquet(uri: str, config: CorpusConfig, first: int, rows: int) -> Iterator[pa.Table]:
    names = {"caption": config.english, "translation": config.translation, "score": config.score}
    wanted = {ours: str(theirs) for ours, theirs in names.items() if theirs is not None}
    with _parquet(uri) as file:
        begin = 0
        for group in range(file.metadata.num_row_groups):
            count = int(file.metadata.row_group(group).num_rows)
            start, stop = max(first, begin), min(first + rows, begin + count)
            if start < stop:
                table = file.read_row_group(group, columns=list(dict.fromkeys(wanted.values())))
                table = table.slice(start - begin, stop - start)
                columns = [
                    _cast(table[wanted[field.name]], field.type)
                    if field.name in wanted
                    else pa.nulls(table.num_rows, field.type)
                    for field in ROWS
                ]
                yield pa.table(columns, schema=ROWS)
            begin += count


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return a column in another type; text that is not UTF-8 is null, as in text files."""
    return (utf8_text(column) if pa.types.is_string(dtype) and _is_text(column.type) else column).cast(dtype)


def _is_text(dtype: pa.DataType) -> bool:
    plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain))


def _read_text(uris: Sequence[str], offsets: Sequence[int], config: CorpusConfig, rows: int) -> Iterator[pa.Table]:
    with ExitStack() as stack:
        opened = [stack.enter_context(_open_text(uri)) for uri in uris]
        for file, offset in zip(opened, offsets, strict=True):
            file.seek(offset)
        split = functools.partial(_split, config=config)
        while rows > 0:
            lines = [[line for _, line in zip(range(min(rows, _AT_ONCE)), file, strict=False)] for file in opened]
            if not lines[0]:
                return
            yield _table([split(texts) for texts in zip(*lines, strict=True)])
            rows -= len(lines[0])


def _split(texts: tuple[bytes, ...], *, config: CorpusConfig) -> tuple[str | None, str | None, float | None]:
    """Return (caption, translation, score) of a line, or of the lines of two files."""
    if config.format == "moses":
        return _decode(texts[0]), _decode(texts[1]), None
    cells = texts[0].rstrip(b"\r\n").split(b"\t")

    def cell(column: int | str | None) -> bytes | None:
        return cells[int(column)] if column is not None and int(column) < len(cells) else None

    return _decode(cell(config.english)), _decode(cell(config.translation)), _number(cell(config.score))


def _number(text: bytes | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _decode(text: bytes | None) -> str | None:
    try:
        return None if text is None else text.decode().strip()
    except UnicodeDecodeError:
        return None


def _table(rows: Sequence[tuple[str | None, str | None, float | None]]) -> pa.Table:
    captions, translations, scores = zip(*rows, strict=True)
    columns = [
        pa.array(values, field.type) for values, field in zip((captions, translations, scores), ROWS, strict=True)
    ]
    return pa.table(columns, schema=ROWS)
