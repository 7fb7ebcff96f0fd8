"""Which rows of a version are in each language: one file next to the version's manifest, mapped into memory.

    versions/<digest>/languages.json   languages and their rows, SHA-256 of the file
    versions/<digest>/languages.rows   row numbers, ascending within a language, one language after the other

An order that draws languages apart has to find the k-th row of a language. Rows are numbered by their place in the
shards, so no formula gives it, and a table in memory would grow with the dataset. So the column `language` is read
once (it is a dictionary of 18 words: under a byte per row, and no latent is read for it) and the result is kept: 4
bytes per row (8 beyond 2**32 rows) on disk, of which a process holds the pages that it touches. It is a function of
the version alone, so it does not matter which process wrote it, and it is made again where it is missing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.documents import read_document
from altdiffusion.storage.shards import REMEDY, damaged
from altdiffusion.storage.user_cache import user_cache
from altdiffusion.training.order.permutation import I64

FACTS, ROWS = "languages.json", "languages.rows"
_BLOCK = 1 << 20

Numbers = NDArray[Any]
"""uint32 or uint64, ascending, mapped from a file."""


def rows_by_language(versions: Sequence[Version]) -> dict[str, int]:
    """Return the rows of each language of some versions together, by code; languages without rows are left out.

    Raises:
        AltDiffusionError: a version's counts do not add up to its rows.
    """
    found: dict[str, int] = {}
    for version in versions:
        counts = version.manifest.rows_by_language
        if sum(counts.values()) != version.rows:
            raise AltDiffusionError(
                version.ref.short,
                f"counts {sum(counts.values()):,} rows by language and holds {version.rows:,}",
                "make the dataset again, or leave order.language_temperature out",
            )
        for language, rows in counts.items():
            found[language] = found.get(language, 0) + rows
    return {language: rows for language, rows in sorted(found.items()) if rows}


def language_rows(version: Version) -> dict[str, Numbers]:
    """Return the row numbers of each language of a version; the file is made where it is missing.

    Raises:
        AltDiffusionError: a shard or the file is damaged, or the rows are not those that the manifest counts.
    """
    uri = files.within(version.uri, ROWS)
    try:
        remedy = "remove this file; the next start makes it again"
        sha256 = read_document(files.within(version.uri, FACTS), remedy=remedy).digest("sha256")
    except FileNotFoundError:
        sha256 = _make(version)["sha256"]
    path = _checked(uri, sha256)
    found: dict[str, Numbers] = {}
    if version.rows:
        numbers: Numbers = np.memmap(path, dtype=_dtype(version), mode="r")
        for language, (start, stop) in _places(version.manifest.rows_by_language).items():
            found[language] = numbers[start:stop]
    return found


class ChosenRows:
    """Some of the rows of versions that are numbered in sequence, themselves numbered 0, 1, 2, ... in ascending order.

    Args:
        pieces: for each version, its chosen rows (ascending) and the number of its first row.
    """

    def __init__(self, pieces: Sequence[tuple[Numbers, int]]) -> None:
        self._pieces = [np.asarray(numbers) for numbers, _ in pieces]  # still mapped; a plain array is sliced faster
        self._first_row = [first for _, first in pieces]
        self._first = np.cumsum([0, *(len(numbers) for numbers in self._pieces)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, chosen: I64) -> I64:
        """Return the rows of chosen rows: int64 [K] -> int64 [K]."""
        found = np.empty_like(chosen)
        piece = np.searchsorted(self._first, chosen, side="right") - 1
        for number in np.unique(piece).tolist():
            here = np.flatnonzero(piece == number)
            found[here] = self._pieces[number][chosen[here] - self._first[number]].astype(np.int64)
            found[here] += self._first_row[number]
        return found

    def some(self, start: int, stop: int) -> I64:
        """Return the rows of the chosen rows start .. stop - 1: int64 [stop - start]."""
        number = int(np.searchsorted(self._first, start, side="right")) - 1
        if stop > self._first[number + 1]:
            return self.rows(np.arange(start, stop))
        first = int(self._first[number])
        return self._pieces[number][start - first : stop - first].astype(np.int64) + self._first_row[number]

    def between(self, start: int, stop: int) -> tuple[int, I64]:
        """Return the chosen ones of the rows start .. stop - 1 of one version: the first one's number, and the rows."""
        number = int(np.searchsorted(self._first_row, start, side="right")) - 1
        numbers, first_row = self._pieces[number], self._first_row[number]
        # Bounds of the array's own dtype: otherwise numpy would turn the whole file into int64 in memory.
        bounds = np.array([start - first_row, stop - first_row], dtype=numbers.dtype)
        low, high = np.searchsorted(numbers, bounds).tolist()
        return int(self._first[number]) + low, numbers[low:high].astype(np.int64) + first_row


def choose(versions: Sequence[Version], language: str) -> ChosenRows:
    """Return the rows in a language of versions that are numbered in sequence."""
    pieces, first = [], 0
    for version in versions:
        if version.manifest.rows_by_language.get(language):
            pieces.append((language_rows(version)[language], first))
        first += version.rows
    return ChosenRows(pieces)


def _dtype(version: Version) -> Any:
    return np.dtype("<u4") if version.rows <= 2**32 else np.dtype("<u8")


def _places(counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return where each language's row numbers are in the file: (first, one after the last)."""
    places, start = {}, 0
    for language in sorted(counts):
        places[language] = (start, start + counts[language])
        start += counts[language]
    return places


def _make(version: Version) -> Any:
    """Write both files and return the facts; several writers at once write the same bytes."""
    uri, counts = files.within(version.uri, ROWS), rows_by_language([version])
    local = files.is_local(uri)
    folder = os.path.dirname(files.local_path(uri)) if local else None
    handle, path = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    os.close(handle)
    try:
        with files.naming(uri, "writing"):
            _fill(version, counts, path)
            facts = {"sha256": _sha256(path), "rows_by_language": counts}
            if local:
                os.chmod(path, 0o644)
                os.replace(path, files.local_path(uri))
            else:
                fs, remote = files.filesystem(uri)
                fs.put_file(path, remote)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    files.write_atomic(files.join(version.uri, FACTS), files.canonical_json(facts))
    return facts


def _fill(version: Version, counts: Mapping[str, int], path: str) -> None:
    if not version.rows:
        return
    numbers = np.memmap(path, dtype=_dtype(version), mode="w+", shape=(version.rows,))
    places = _places(counts)
    at = {language: start for language, (start, _) in places.items()}
    row = 0
    for column in _columns(version):
        codes = column.dictionary_encode().combine_chunks()
        codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
        found = codes.indices.to_numpy(zero_copy_only=False)
        for code, language in enumerate(codes.dictionary.to_pylist()):
            rows = np.flatnonzero(found == code) + row
            if language not in places or at[language] + len(rows) > places[language][1]:
                raise _other_counts(version, language)
            numbers[at[language] : at[language] + len(rows)] = rows
            at[language] += len(rows)
        row += len(found)
    short = [language for language, (_, stop) in places.items() if at[language] != stop]
    if short:
        raise _other_counts(version, short[0])
    numbers.flush()


def _other_counts(version: Version, language: str) -> AltDiffusionError:
    return AltDiffusionError(
        version.ref.short, f"holds another number of rows in {language} than its manifest states", REMEDY
    )


def _columns(version: Version) -> Iterator[pa.ChunkedArray]:
    """Yield the column `language`, one row group at a time; nothing else of the shards is read."""
    for number, shard in enumerate(version.shards):
        uri = version.shard_uri(number)
        fs, path = files.filesystem(uri)
        try:
            if fs.size(path) != shard.bytes:
                raise ValueError(f"it has {fs.size(path)} bytes instead of {shard.bytes}")
            with fs.open(path, "rb") as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=["language"]).column("language")
        except FileNotFoundError as error:
            raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise damaged(uri, error) from error


@functools.lru_cache(maxsize=64)
def _checked(uri: str, sha256: str) -> str:
    """Return a local path of the file, its bytes checked: once per process, since that reads the whole file."""
    path = _local(uri, sha256)
    if _sha256(path) != sha256:
        raise AltDiffusionError(
            f"file {uri}", f"is damaged: its SHA-256 is not the one in {FACTS}", f"delete {FACTS}: it is made again"
        )
    return path


def _local(uri: str, sha256: str) -> str:
    """Return a local path of the file; a remote one is copied once into the user's cache folder under its hash."""
    if files.is_local(uri):
        return files.local_path(uri)
    path = user_cache("languages", sha256)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fs, remote = files.filesystem(uri)
        partial = f"{path}.{os.getpid()}"
        fs.get_file(remote, partial)
        os.replace(partial, path)
    return path


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with files.naming(path, "reading"), open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
