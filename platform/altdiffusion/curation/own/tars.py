"""WebDataset tar files, those of img2dataset among them: `KEY.jpg`, `KEY.txt`, `KEY.json`, one after the other.

The key of a member is its name up to the first dot of the last part (the WebDataset convention); what follows is its
field. Members of one key that follow each other are a sample. Of several images in a sample, `2.jpg` has the captions
of `2.txt` if there is such a member, and else those of the sample. Nothing is written to disk.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own.columns import asks_for_columns, check_columns
from altdiffusion.curation.own.failed_rows import failed_rows, failure
from altdiffusion.curation.own.listing import Listing, SourceFile, check_identity, digests, opened
from altdiffusion.curation.own.metadata import json_object
from altdiffusion.curation.own.sample import Caption, Sample, field_captions, is_image_name, is_unsafe, lower_keys, nfc
from altdiffusion.curation.own.texts import file_captions
from altdiffusion.curation.rejects import NO_CAPTION, NO_IMAGE, TOO_LARGE, UNSAFE_PATH, Refused
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit

_TAR = re.compile(r"(?i)(.*)\.(?:tar(?:\.(gz|zst))?|(tgz))")
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_CODECS = {"gz": "gzip", "tgz": "gzip", "zst": "zstd"}
_LOOKED_AT = 64
"""Samples that are read for their columns when tar files are planned."""
_MOST_TEXT = 1 << 20
"""Bytes of a text or JSON member; a larger one is not a caption."""


def is_tar(file: SourceFile) -> bool:
    """Return whether a file is a tar file, by its name."""
    return _TAR.fullmatch(file.key) is not None


def plan_tars(listing: Listing, config: OwnConfig) -> tuple[list[Unit], list[list[str]]]:
    """Return one unit per tar file, and [name, identity] of everything that is read.

    Raises:
        AltDiffusionError: a file cannot be read, or the first samples lack the column of the language.
    """
    by_key = {file.key: file for file in listing.files}
    tars = [file for file in listing.files if is_tar(file)]
    tables = [by_key.get(f"{_TAR.fullmatch(file.key)[1]}.parquet") for file in tars]  # type: ignore[index]
    known = digests(tars)
    if tars and asks_for_columns(config, ()):
        names, whole = _json_names(tars[0])
        looked = "" if whole else f", the first {_LOOKED_AT} samples of {tars[0].key}"
        check_columns(config, names, f"source {config.uri}{looked}")
    known_tables = iter(digests([table for table in tables if table is not None]))
    units: list[Unit] = []
    reads: list[list[str]] = []
    for file, digest, table in zip(tars, known, tables, strict=True):
        payload: dict[str, Any] = {"name": file.key, "uri": file.uri, "digest": digest}
        read = [[file.key, digest]]
        if table is not None:
            payload["table"] = {"uri": table.uri, "digest": next(known_tables)}
            read.append([table.key, payload["table"]["digest"]])
        units.append(new_unit(len(units), read, payload, name=config.name))
        reads += read
    return units, reads


def _json_names(file: SourceFile) -> tuple[set[str], bool]:
    """Return the names in the JSON of the first samples of a tar file, and whether these are all samples of it."""
    names: set[str] = set()
    keys: set[str] = set()
    with _opened_tar(file.uri, file.key) as (tar, _):
        for info in tar:
            key, _, kind = info.name.rpartition("/")[2].partition(".")
            keys.add(key)
            if len(keys) > _LOOKED_AT:
                return names, False
            body = tar.extractfile(info) if kind.lower() == "json" and info.isfile() else None
            if body is not None and info.size <= _MOST_TEXT:
                try:
                    names |= set(lower_keys(json_object(body.read(), "a JSON member")))
                except AltDiffusionError:  # a member of another use
                    continue
    return names, True


class _Entry(tarfile.TarInfo):
    """A header of a tar file. `tarfile` reads the whole of an extended one, which holds a name or a few attributes."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _MOST_TEXT:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


@contextlib.contextmanager
def _opened_tar(uri: str, name: str) -> Iterator[tuple[tarfile.TarFile, _Ending]]:
    """Open a tar file to read it member by member.

    Raises:
        AltDiffusionError: by what is done within the block too: it cannot be read, is damaged, or ends early.
    """
    with opened(uri) as file:
        try:
            packed = _Ending(_unpacked(file, name))
            with tarfile.open(fileobj=packed, mode="r|", tarinfo=_Entry) as tar:  # type: ignore[call-overload]
                yield tar, packed
        except (tarfile.TarError, pa.ArrowException, EOFError, zlib.error, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the storage, and not of what unpacks
                raise
            raise AltDiffusionError(
                f"source file {uri}",
                f"is damaged or ends early ({first_line(error)})",
                "fetch or write it again, or leave it out of the source",
            ) from error


class TarReader:
    """Reads tar files, member by member."""

    def __init__(self, config: OwnConfig) -> None:
        self._config = config

    def __call__(self, unit: Unit) -> Iterator[Sample]:
        """Yield the samples of a tar file, then the rows that img2dataset could not download.

        Raises:
            AltDiffusionError: a file is damaged, gone, or another one since planning.
        """
        uri, name = str(unit.payload["uri"]), str(unit.payload["name"])
        check_identity(uri, str(unit.payload["digest"]))
        with _opened_tar(uri, name) as (tar, packed):
            for key, members in itertools.groupby(self._members(tar), key=lambda member: member.key):
                yield from self._samples(f"{name}/{key}", list(members))
            packed.check()
        if "table" in unit.payload:
            yield from failed_rows(unit.payload["table"]["uri"], unit.payload["table"]["digest"])

    def _members(self, tar: tarfile.TarFile) -> Iterator[_Member]:
        for info in tar:
            name = nfc(info.name[2:] if info.name.startswith("./") else info.name)
            folder, _, last = name.rpartition("/")
            stem, dot, field = last.partition(".")
            if info.isdir() or last.startswith(".") or not dot:
                continue
            key = f"{folder}/{stem}" if folder else stem
            image = is_image_name(last)
            if is_unsafe(name) or not info.isfile():
                kind = "a link or device" if not info.isfile() else name
                yield _Member(key, field.lower(), image, None, Refused(UNSAFE_PATH, kind))
                continue
            limit = self._config.store.max_bytes if image else _MOST_TEXT
            if info.size > limit:
                yield _Member(key, field.lower(), image, None, Refused(TOO_LARGE, f"{info.size} bytes"))
                continue
            wanted = image or field.rpartition(".")[2].lower() in ("txt", "caption", "json")
            body = tar.extractfile(info) if wanted else None
            yield _Member(key, field.lower(), image, body.read() if body is not None else None, None)

    def _samples(self, name: str, members: Sequence[_Member]) -> Iterator[Sample]:
        images = [member for member in members if member.is_image]
        texts = {member.field: member for member in members if not member.is_image}
        for image in images:
            place = image.field.rpartition(".")[0]
            shown = f"{name}.{image.field}" if len(images) > 1 else name
            captions: list[Caption] = []
            fields: dict[str, Any] = {}
            try:
                captions, fields = self._described(texts, place)
                if image.refused is not None:
                    raise image.refused
                failed = failure(fields)
                if failed is not None:
                    raise failed
                if not captions:
                    raise Refused(NO_CAPTION)
            except Refused as refused:
                yield Sample(name=shown, captions=captions, fields=fields, refused=refused)
                continue
            yield Sample(name=shown, body=image.body, captions=captions, fields=fields)
        if not images:
            fields_only = sorted(member.field for member in members)
            yield Sample(name=name, refused=Refused(NO_IMAGE, f"it has {', '.join(fields_only)[:150]}"))

    def _described(self, texts: dict[str, _Member], place: str) -> tuple[list[Caption], dict[str, Any]]:
        """Return the captions and fields of the image whose field begins with `place`, or of the whole sample."""

        def member(kind: str) -> _Member | None:
            return texts.get(f"{place}.{kind}" if place else kind) or texts.get(kind)

        captions: list[Caption] = []
        for kind in ("txt", "caption"):
            text = member(kind)
            if text is not None:
                captions += file_captions(text.content(), self._config.caption_encoding)
        described = member("json")
        fields: dict[str, Any] = {}
        if described is not None:
            try:
                fields = lower_keys(json_object(described.content(), "a JSON member"))
            except AltDiffusionError:  # a member of another use
                fields = {}
        config = self._config
        return captions or field_captions(
            fields, config.captions, config.language_column, config.identify.languages
        ), fields


class _Ending:
    """A tar file that remembers its last block: cut between two members, it would otherwise end without an error."""

    def __init__(self, file: Any) -> None:
        self._file, self._last = file, b""

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data = bytes(self._file.read(size))
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    def check(self) -> None:
        """Read to the end.

        Raises:
            tarfile.ReadError: the file has no end mark, a block of zeros.
        """
        while self.read(1 << 20):
            pass
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark")


class _Member:
    """A member of a tar file: the key of its sample, its field, and its bytes or why it is not taken."""

    def __init__(self, key: str, field: str, is_image: bool, body: bytes | None, refused: Refused | None) -> None:
        self.key, self.field, self.is_image, self.body, self.refused = key, field, is_image, body, refused

    def content(self) -> bytes:
        """Return the bytes of a text or JSON member."""
        if self.refused is not None:
            raise self.refused
        return self.body or b""


def _unpacked(file: Any, name: str) -> Any:
    match = _TAR.fullmatch(name)
    codec = _CODECS.get(((match and (match[2] or match[3])) or "").lower())
    if codec is None:
        return file
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec))
