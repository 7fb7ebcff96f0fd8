"""Links in text files: CSV, TSV, JSON lines and plain lines, each also packed with gzip or Zstandard.

A text file has no footer. It is read once where units are planned, and once by each worker that reads it: what is kept
is where every block of rows begins, and a digest of all lines. A packed file has to be unpacked up to a unit's block.

    a.csv  a.tsv       a header line, then cells; quotation marks as in RFC 4180
    a.jsonl a.ndjson   an object per line
    a.txt              an address per line, white space, its caption
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.links.source_columns import TEXTS, resolve_columns
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

_NAME = re.compile(r"(?i).*\.(csv|tsv|jsonl|ndjson|txt)(?:\.(gz|gzip|zst|zstd))?")
BLOCK_ROWS = 65_536
"""Rows of a block: what a Parquet file calls a row group."""
_AGAIN = "write this part again, or leave it out of the glob"
_MOST_LINE = 16 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class TextIndex:
    """What is known of a text file once it has been read."""

    digest: str
    """SHA-256 of the unpacked lines."""
    columns: tuple[str, ...]
    starts: tuple[int, ...]
    """Offset of each block's first row in the unpacked file."""
    block_rows: npt.NDArray[np.int64]

    @property
    def schema(self) -> pa.Schema:
        """The columns; a text file states no types."""
        return pa.schema([(name, pa.null()) for name in self.columns])


def is_text(uri: str) -> bool:
    """Return whether a part is a text file, by its name."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[-1]) is not None


def index_text(uri: str) -> TextIndex:
    """Read a text file and return where its rows are.

    Raises:
        AltDiffusionError: it cannot be read, is not UTF-8 or not of its format.
    """
    starts: list[int] = []
    rows = 0
    columns: dict[str, None] = {}
    with _Lines(uri) as lines:
        for row in _records(lines, uri):
            if rows % BLOCK_ROWS == 0:
                starts.append(lines.record_start)
            rows += 1
            columns.update(dict.fromkeys(name for name, value in row.items() if value is not None))
        digest = lines.digest()
    if not rows:
        raise AltDiffusionError(f"source part {uri}", "holds no row", "write it again, or leave it out of the glob")
    if _kind(uri) == "txt" and "caption" not in columns:
        raise AltDiffusionError(
            f"source part {uri}", "holds addresses alone", "write each caption behind its address, or give a CSV file"
        )
    counts = np.full(len(starts), BLOCK_ROWS, np.int64)
    counts[-1] = rows - BLOCK_ROWS * (len(starts) - 1)
    return TextIndex(digest=digest, columns=tuple(columns), starts=tuple(starts), block_rows=counts)


@functools.lru_cache(maxsize=8)
def indexed(uri: str, digest: str) -> TextIndex:
    """Return the index of a file that has this digest.

    Raises:
        AltDiffusionError: it is gone, or another one since planning.
    """
    index = index_text(uri)
    if index.digest != digest:
        raise AltDiffusionError(f"source part {uri}", "changed since planning", "run the job again")
    return index


class TextBlocks:
    """Reads blocks of a text file, column by column."""

    def __init__(self, uri: str, index: TextIndex, config: SourceConfig) -> None:
        self._uri, self._index = uri, index
        self.columns = resolve_columns(index.schema, config, uri)

    def read(self, number: int, names: Sequence[str]) -> dict[str, pa.Array]:
        """Return the columns of a block under our names: texts as string, ids as int64, other numbers as float64.

        A cell that is not a number where one belongs is null.
        """
        wanted = {name: self.columns[name] for name in names if name in self.columns}
        held: dict[str, list[Any]] = {name: [] for name in wanted}
        count = int(self._index.block_rows[number])
        with _Lines(self._uri, self._index.starts[number]) as lines:
            header = self._index.columns if self._uri_has_header else None
            for _, row in zip(range(count), _records(lines, self._uri, header), strict=False):
                for ours, theirs in wanted.items():
                    held[ours].append(_value(ours, row.get(theirs)))
        return {name: pa.array(values, _dtype(name)) for name, values in held.items()}

    @property
    def _uri_has_header(self) -> bool:
        return _kind(self._uri) in ("csv", "tsv")


def _dtype(name: str) -> pa.DataType:
    return pa.string() if name in TEXTS else pa.int64() if name == "sample_id" else pa.float64()


def _value(name: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if name in TEXTS:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        if name == "sample_id":
            number = int(value)
            return number if -(2**63) <= number < 2**63 else None
        return float(value)
    except (TypeError, ValueError):
        return None


def _kind(uri: str) -> str:
    match = _NAME.fullmatch(uri.rsplit("/", 1)[-1])
    return match[1].lower() if match is not None else ""


def _records(lines: _Lines, uri: str, header: Sequence[str] | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file from where it is open; blank lines are none.

    Args:
        header: the names of the columns, where it is open behind its first line.
    """
    kind = _kind(uri)
    if kind in ("csv", "tsv"):
        yield from _cells(lines, uri, header, "\t" if kind == "tsv" else ",")
        return
    for line in lines:
        if not line.strip():
            lines.next_record()
            continue
        yield _object(line, uri) if kind != "txt" else _address(line)
        lines.next_record()


def _cells(lines: _Lines, uri: str, header: Sequence[str] | None, delimiter: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for row in reader:
            if header is None:
                header = [name.strip() for name in row]
                if len(set(header)) != len(header):
                    raise AltDiffusionError(f"source part {uri}", "has two columns of one name", "name each once")
            elif row:
                if len(row) > len(header):
                    raise AltDiffusionError(
                        f"source part {uri}",
                        f"has a row of {len(row)} cells near line {reader.line_num}, for {len(header)} columns",
                        "put a cell that holds the separator in quotation marks",
                    )
                yield dict(zip(header, row, strict=False))
            lines.next_record()
    except csv.Error as error:
        raise AltDiffusionError(
            f"source part {uri}", f"is not CSV near line {reader.line_num} ({error})", _AGAIN
        ) from error


def _object(line: str, uri: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line.strip()[:60]
        raise AltDiffusionError(
            f"source part {uri}", f"has a line that is not JSON ({first_line(error)}): {shown!r}", _AGAIN
        ) from error
    if not isinstance(value, dict):
        raise AltDiffusionError(
            f"source part {uri}", f"has a line that is not an object: {line.strip()[:60]!r}", _AGAIN
        )
    return value


def _address(line: str) -> Mapping[str, Any]:
    url, _, caption = line.strip().replace("\t", " ").partition(" ")
    return {"url": url, "caption": caption.strip() or None}


class _Lines:
    """The lines of a text file as text, from an offset of the unpacked file; counts bytes and digests them.

    Raises:
        AltDiffusionError: by everything: the file is gone, damaged, or not UTF-8.
    """

    def __init__(self, uri: str, start: int = 0) -> None:
        self._uri, self._at, self._line = uri, start, 0
        self.record_start = start
        """Offset of the record that is being read."""
        self._hash = hashlib.sha256()

    def __enter__(self) -> _Lines:
        try:
            fs, path = files.filesystem(self._uri)
            self._raw = fs.open(path, "rb")
            self._file = _unpacked(self._raw, self._uri)
            left = self._at
            while left:
                skipped = len(self._file.read(min(left, 1 << 20)))
                if not skipped:
                    break
                left -= skipped
        except (OSError, pa.ArrowException) as error:
            raise self._error(error) from error
        return self

    def __exit__(self, *_: Any) -> None:
        self._raw.close()

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self._file.readline(_MOST_LINE)
            except (OSError, EOFError, pa.ArrowException) as error:
                raise self._error(error) from error
            if not line:
                return
            if len(line) == _MOST_LINE:
                raise AltDiffusionError(f"source part {self._uri}", "has a line of over 16 MiB", _AGAIN)
            if self._at == 0:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise AltDiffusionError(f"source part {self._uri}", "is UTF-16", "save it as UTF-8")
                text = line.removeprefix(b"\xef\xbb\xbf")
            else:
                text = line
            self._hash.update(line)
            self._at += len(line)
            self._line += 1
            try:
                yield text.decode("utf-8")
            except UnicodeDecodeError as error:  # a replacement would become part of a caption, or vanish from it
                raise AltDiffusionError(
                    f"source part {self._uri}",
                    f"is not UTF-8 in line {self._line} ({first_line(error)})",
                    "write it again as UTF-8, e.g. by iconv -f cp1251 -t utf-8",
                ) from error

    def next_record(self) -> None:
        """Note that the next record begins behind what has been read."""
        self.record_start = self._at

    def digest(self) -> str:
        """Return the digest of the lines that were read."""
        return self._hash.hexdigest()

    def _error(self, error: Exception) -> AltDiffusionError:
        return AltDiffusionError(f"source part {self._uri}", f"cannot be read ({first_line(error)})", _AGAIN)


def _unpacked(file: Any, uri: str) -> Any:
    match = _NAME.fullmatch(uri.rsplit("/", 1)[-1])
    packed = ((match and match[2]) or "").lower()
    if not packed:
        return file
    return io.BufferedReader(
        pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "gzip" if packed[0] == "g" else "zstd")
    )
