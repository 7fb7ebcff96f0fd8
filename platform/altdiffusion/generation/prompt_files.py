"""Files of prompts: each format is read in chunks of columns of text; one bad row does not stop the others.

A row has a number, from 1: that of its line in JSON lines and plain text, else its place in the table.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.generation.prompt_presets import FIELDS, OWN_COLUMNS, PRESETS
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.generation.webui_text import Row, webui_rows
from altdiffusion.languages import normalised_tag
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.unpacking import unpacked

CHUNK_ROWS = 65_536
RAW = pa.schema([("number", pa.int64()), ("problem", pa.string()), *((name, pa.string()) for name in FIELDS)])
"""A chunk of rows before they are checked: all values as text, and why a row could not be read, if so."""
_SEPARATORS = (",", ";", "\t", "|")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MOST_JSON = 1 << 30
"""Bytes of a packed array, which is read as a whole."""
_NOT_UTF8 = "holds bytes or half characters that are not UTF-8"
_FORMATS = "name it .jsonl, .json, .csv, .tsv, .parquet or .txt, all but .parquet also with .gz"


def read_bytes(uri: str) -> bytes:
    """Return the file as stored, compressed or not.

    Raises:
        AltDiffusionError: it does not exist.
    """
    try:
        return files.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AltDiffusionError(f"prompts file {uri}", "does not exist", "check the path") from error


def read_chunks(config: PromptsConfig, others: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yield the rows of the file as RAW tables of at most CHUNK_ROWS rows.

    Args:
        others: further columns to read, as text with nulls, which follow those of RAW; a switch is `true` or `false`.

    Raises:
        AltDiffusionError: the file as a whole is unreadable, or has no column of prompts.
    """
    return _Reader(config, others).chunks()


class _Reader:
    """The reading of one file."""

    def __init__(self, config: PromptsConfig, others: Sequence[str]) -> None:
        self._config = config
        self._others = others
        name, dot, ending = config.file.lower().rpartition(".")
        self._packed = ending == "gz"
        self._format = name.rpartition(".")[2] if self._packed else ending if dot else ""
        if self._format not in config.shape.formats:
            wanted = f"preset {config.preset} reads .{', .'.join(config.shape.formats)}" if config.preset else _FORMATS
            raise self._error("has an unknown format", wanted)
        # Text files, and presets that reshape rows, give values by our own names.
        own = self._format == "txt" or config.shape.layout != "rows"
        columns = {**OWN_COLUMNS} if own else {**config.shape.columns, **config.columns}
        self._columns = {name: column for name, column in columns.items() if name not in config.ignore}
        self._columns |= {name: name for name in others}

    def chunks(self) -> Iterator[pa.Table]:
        data = read_bytes(self._config.file)
        if self._format == "parquet":
            yield from self._parquet(data)
            return
        try:
            yield from self._of_rows(self._rows(data))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._error(f"is not readable gzip ({first_line(error)})", "write it again") from error

    def _of_rows(self, rows: Iterator[Row]) -> Iterator[pa.Table]:
        checked = False
        while some := list(itertools.islice(rows, CHUNK_ROWS)):
            names = {name for _, values, _ in some if values is not None for name in values}
            if names and not checked:
                self._check_columns(names)
                checked = True
            present = {name: column for name, column in self._columns.items() if column in names}
            yield _chunk(some, present, self._others)

    def _rows(self, data: bytes) -> Iterator[Row]:
        stream = io.BytesIO(data)
        if self._packed:
            most = _MOST_JSON if self._format == "json" else None
            buffered = unpacked(stream, f"prompts file {self._config.file}", most)
        else:
            buffered = io.BufferedReader(cast("io.RawIOBase", stream))
        if buffered.peek(2)[:2] in _UTF16:
            raise self._error("is UTF-16", "save it as UTF-8")
        newline = "" if self._format in ("csv", "tsv") else None
        # Bytes that are not UTF-8 become half characters, which make their row a reject and no other.
        text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline=newline)
        if self._format in ("csv", "tsv"):
            return self._table(text)
        if self._config.shape.layout == "webui":
            return webui_rows(text)
        if self._format == "txt":
            return self._lines(text)
        objects = self._array(text) if self._format == "json" else _json_lines(text)
        return self._reshaped(objects)

    def _lines(self, text: Iterable[str]) -> Iterator[Row]:
        for number, line in enumerate(text, 1):
            prompt = line.rstrip("\n")
            if prompt.strip() and not (self._config.comments and prompt.startswith(self._config.comments)):
                yield number, {"prompt": prompt}, None

    def _array(self, text: io.TextIOWrapper) -> Iterator[Row]:
        whole = text.read()
        try:
            values = json.loads(whole)
        except RecursionError as error:
            raise self._error("is nested too deeply", "write an array of objects") from error
        except ValueError as error:
            if getattr(error, "msg", "") == "Extra data":  # JSON lines under another name
                return _json_lines(io.StringIO(whole))
            raise self._error(f"is not JSON ({first_line(error)})", "write it again") from error
        if not isinstance(values, list):
            raise self._error("is not an array", "write an array of texts or objects")
        prompt = self._columns["prompt"]
        return (
            (number, {prompt: value}, None) if isinstance(value, str) else _object(number, value)
            for number, value in enumerate(values, 1)
        )

    def _reshaped(self, rows: Iterator[Row]) -> Iterator[Row]:
        layout = self._config.shape.layout
        if layout == "rows":
            return rows
        reshape = _captions if layout == "captions" else self._pair
        return (
            one
            for number, values, problem in rows
            for one in (reshape(number, values) if values is not None else [(number, None, problem)])
        )

    def _pair(self, number: int, values: Mapping[str, Any]) -> Iterator[Row]:
        """Yield the translation, or where there is none, the English caption."""
        language = self._config.language
        caption = values.get("target_caption")
        if caption is None:
            caption, language = values.get("source_caption"), "en"
        if isinstance(caption, list):  # as Crossmodal-3600 has them; the authors draw the first
            caption = caption[0] if caption else None
        image = values.get("image")
        name = PurePosixPath(image).name if isinstance(image, str) else None
        yield number, {"id": name, "prompt": caption, "language": language}, None

    def _table(self, text: io.TextIOWrapper) -> Iterator[Row]:
        first = text.readline()
        reader = csv.reader(itertools.chain([first], text), delimiter=self._separator(first), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise self._error(f"has no readable header ({error})", "name the columns in the first line") from error
        self._check_columns(set(header))
        if len(set(header)) != len(header):
            raise self._error("names a column twice in its header", "give each column a name of its own")
        for number in itertools.count(1):
            try:
                fields = next(reader)
                while not fields:
                    fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error) or "field limit" in str(error):
                    raise self._error(
                        f"has a quotation mark in row {number} that is never closed",
                        "close it, or double each mark that is part of a quoted text",
                    ) from error
                yield number, None, f"has a misplaced quotation mark ({error})"
                continue
            if len(fields) != len(header):
                yield number, None, f"has {len(fields)} fields where the header has {len(header)}"
            else:
                yield number, dict(zip(header, fields, strict=True)), None

    def _separator(self, header: str) -> str:
        """Return the separator that is set, or else the one that makes the column of prompts a column."""
        if self._config.separator is not None or self._format == "tsv":
            return self._config.separator or "\t"
        wanted = self._columns["prompt"]
        return next((one for one in _SEPARATORS if wanted in (name.strip(' "\r\n') for name in header.split(one))), ",")

    def _parquet(self, data: bytes) -> Iterator[pa.Table]:
        try:
            table = pq.ParquetFile(pa.BufferReader(data))
            names = set(table.schema_arrow.names)
            self._check_columns(names)
            present = {name: column for name, column in self._columns.items() if column in names}
            number = 1
            for batch in table.iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(present.values()))):
                yield self._columns_of(batch, present, number)
                number += batch.num_rows
        except UNREADABLE as error:
            raise self._error(f"is not readable Parquet ({first_line(error)})", "write it again") from error

    def _columns_of(self, batch: pa.RecordBatch, present: Mapping[str, str], first: int) -> pa.Table:
        arrays = {"number": pa.array(range(first, first + batch.num_rows), pa.int64())}
        problems: list[str | None] = [None] * batch.num_rows
        for name, column in present.items():
            values = batch.column(column)
            if pa.types.is_boolean(values.type) and name in self._others:
                values = values.cast(pa.string())
            text = _column_text(_as_json(values) if name == "regions" else values)
            if text is None:
                raise self._error(
                    f"has the type {values.type} in column {column}",
                    f"write texts or numbers, or add {name} to prompts.ignore",
                )
            arrays[name], wrong = _utf8(text)
            for place in wrong:
                problems[place] = problems[place] or f"field {name}: {_NOT_UTF8}"
        arrays["problem"] = pa.array(problems, pa.string())
        return _filled(arrays, batch.num_rows, self._others)

    def _check_columns(self, names: set[str]) -> None:
        """Refuse a file without prompts, or without a column that the config names."""
        prompt = self._columns["prompt"]
        fitting = [
            name
            for name, preset in PRESETS.items()
            if preset.layout == "rows" and set(preset.columns.values()) <= names and "prompt" not in names
        ]
        shown = ", ".join(sorted(names)[:20]) or "none"
        if prompt not in names:
            remedy = f"set prompts.preset: {fitting[0]}" if fitting else "map it in prompts.columns, as {prompt: text}"
            raise self._error(f"has no column {prompt!r}; it has: {shown}", remedy)
        lost = [f"{name}: {column}" for name, column in self._config.columns.items() if column not in names]
        if lost:
            raise self._error(f"does not have the mapped columns {', '.join(lost)}; it has: {shown}", "check columns")

    def _error(self, problem: str, remedy: str) -> AltDiffusionError:
        return AltDiffusionError(f"prompts file {self._config.file}", problem, remedy)


def _json_lines(text: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, None, f"is not JSON ({getattr(error, 'msg', None) or first_line(error)})"
            continue
        yield _object(number, value)


def _object(number: int, value: Any) -> Row:
    return (number, value, None) if isinstance(value, dict) else (number, None, "is not an object")


def _captions(number: int, values: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one row per caption; ids are <image>-<language>, and from the second caption on <image>.<n>-<language>."""
    image = values.get("image/key")
    several = {tag: entry["caption"] for tag, entry in values.items() if isinstance(entry, dict) and "caption" in entry}
    if not isinstance(image, str) or not several:
        yield number, None, "has no image/key, or no captions by language"
        return
    for tag, captions in several.items():
        for place, caption in enumerate(captions if isinstance(captions, list) else [captions], 1):
            concept = image if place == 1 else f"{image}.{place}"
            language = normalised_tag(tag) or tag
            yield number, {"id": f"{concept}-{language}", "prompt": caption, "language": tag}, None


def _chunk(rows: list[Row], columns: Mapping[str, str], others: Sequence[str]) -> pa.Table:
    """Return rows of plain values as a RAW table with the other columns behind it."""
    problems = [problem for _, _, problem in rows]
    arrays = {"number": pa.array([number for number, _, _ in rows], pa.int64())}
    for name, column in columns.items():
        texts: list[str | None] = []
        for place, (_, values, _) in enumerate(rows):
            value = None if values is None else values.get(column)
            if isinstance(value, bool) and name in others:
                value = "true" if value else "false"
            elif value is not None and value.__class__ is not str:
                value = _as_text(name, value)
                if value is None and problems[place] is None:
                    problems[place] = _wrong_type(name, values[column] if values is not None else None)
            texts.append(value or None)
        try:
            arrays[name] = pa.array(texts, pa.string())
        except UnicodeEncodeError:
            for place, text in enumerate(texts):
                if text is not None and not _is_unicode(text):
                    texts[place] = None
                    problems[place] = problems[place] or f"field {name}: {_NOT_UTF8}"
            arrays[name] = pa.array(texts, pa.string())
    arrays["problem"] = pa.array([_plain(problem) for problem in problems], pa.string())
    return _filled(arrays, len(rows), others)


def _as_text(name: str, value: Any) -> str | None:
    """Return a value that is not a text as one; the text is empty for NaN, as pandas writes a missing number."""
    if name == "regions" and isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or name in ("prompt", "negative_prompt"):
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    return str(value)


def _wrong_type(name: str, value: Any) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"field {name}: {shown} is not a {'text' if name in ('prompt', 'negative_prompt') else 'text or number'}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str | None) -> str | None:
    return text if text is None else text.encode(errors="replace").decode()


def _as_json(values: pa.Array) -> pa.Array:
    """Return a column of lists as one of JSON; others as they are."""
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        return values
    return pa.array([None if one is None else json.dumps(one) for one in values.to_pylist()], pa.string())


def _column_text(values: pa.Array) -> pa.Array | None:
    """Return a column as text; whole numbers that were stored as floats, as pandas does, lose their `.0`."""
    dtype = values.type
    if pa.types.is_dictionary(dtype):
        values = values.dictionary_decode()
        dtype = values.type
    if pa.types.is_floating(dtype):
        values = values.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**63))
        integers = pc.if_else(pc.fill_null(whole, False), values, None).cast(pa.int64(), safe=False)
        missing = pc.fill_null(pc.is_nan(values), True)
        others = pc.if_else(missing, None, values).cast(pa.string())
        return pc.coalesce(integers.cast(pa.string()), others)
    if pa.types.is_integer(dtype) or pa.types.is_null(dtype) or pa.types.is_large_string(dtype):
        return values.cast(pa.string())
    if pa.types.is_string_view(dtype):
        return values.cast(pa.string())
    return values if pa.types.is_string(dtype) else None


def _utf8(texts: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return texts, null where they are not UTF-8, which Parquet does not check; and the places of those."""
    raw = texts.cast(pa.binary())
    try:
        return raw.cast(pa.string()), []
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        wrong = [place for place, value in enumerate(values) if value is not None and not _is_utf8(value)]
        gone = set(wrong)
        return pa.array([None if place in gone else value for place, value in enumerate(values)], pa.string()), wrong


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _filled(arrays: Mapping[str, pa.Array], rows: int, others: Sequence[str]) -> pa.Table:
    schema = pa.schema([*RAW, *((name, pa.string()) for name in others)])
    return pa.table([arrays.get(field.name, pa.nulls(rows, field.type)) for field in schema], schema=schema)
