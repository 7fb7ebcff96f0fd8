"""Metadata files: rows that name images, as CSV, TSV, JSON lines or Parquet (Hugging Face's `imagefolder`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.own.listing import SourceFile, read_file
from altdiffusion.curation.own.sample import lower_keys, nfc
from altdiffusion.curation.own.table_rows import python_rows, text_columns, wrong_text
from altdiffusion.curation.own.texts import decode_text
from altdiffusion.curation.rejects import CAPTION_BYTES, Refused
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.arrow_errors import UNREADABLE

NAMES = frozenset(f"metadata.{kind}" for kind in ("jsonl", "ndjson", "csv", "tsv", "parquet"))
FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
"""Columns that may name the image, the first one that is there."""
Rows = dict[str, list[dict[str, Any]]]
"""Rows by the name of their image within the source, as it is compared."""


def is_metadata(file: SourceFile) -> bool:
    """Return whether a file is a metadata file, by its name."""
    return file.key.rpartition("/")[2].lower() in NAMES


def read_metadata(file: SourceFile, digest: str, encoding: str) -> Rows:
    """Return the rows of a metadata file by image; names are relative to the file's own folder.

    Raises:
        AltDiffusionError: it cannot be read, or has no column that names files.
    """
    body = read_file(file.uri, digest)
    assert isinstance(body, bytes)
    kind = file.key.rpartition(".")[2].lower()
    try:
        rows = list(_parquet(body) if kind == "parquet" else _text(decode_text(body, encoding), kind, file.uri))
    except Refused as refused:
        raise _wrong(file.uri, refused.detail, "save it as UTF-8, or set caption_encoding") from refused
    except (*UNREADABLE, csv.Error) as error:
        raise _wrong(file.uri, f"cannot be read ({first_line(error)})", "write it again") from error
    folder = file.key.rpartition("/")[0]
    found: Rows = {}
    for number, row in enumerate(rows, 1):
        column = next((name for name in FILE_COLUMNS if name in row), None)
        if column is None:
            raise _wrong(
                file.uri,
                f"row {number} has no column file_name; it has {', '.join(row) or 'nothing'}",
                "name each row's image in `file_name`, relative to this file",
            )
        name = nfc(str(row[column]))
        inside = name[2:] if name.startswith("./") else name
        found.setdefault(f"{folder}/{inside}" if folder and not inside.startswith("/") else inside, []).append(row)
    return found


def _parquet(body: bytes) -> Iterator[dict[str, Any]]:
    table = pq.read_table(pa.BufferReader(body))
    names = text_columns(table.schema)
    for number, row in enumerate(python_rows(table), 1):
        wrong = wrong_text(row, names)
        if wrong is not None:
            raise Refused(CAPTION_BYTES, f"row {number}: {wrong}")
        yield lower_keys(row)


def _text(text: str, kind: str, uri: str) -> Iterator[dict[str, Any]]:
    if kind in ("csv", "tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ",", strict=True)
        for row in reader:
            if None in row:
                raise _wrong(
                    uri,
                    f"line {reader.line_num} has more cells than the header",
                    "put a cell that holds the separator in quotation marks",
                )
            yield {key: value for key, value in lower_keys(row).items() if value != ""}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield lower_keys(json_object(line, f"metadata file {uri}, line {number}"))


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        AltDiffusionError: the text is anything else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AltDiffusionError(what, f"is not JSON ({first_line(error)})", "write one object per line") from error
    if not isinstance(value, dict):
        raise AltDiffusionError(what, "is not a JSON object", 'write e.g. {"file_name": "a.jpg", "text": "..."}')
    return value


def _wrong(uri: str, problem: str, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(f"metadata file {uri}", problem, remedy)
