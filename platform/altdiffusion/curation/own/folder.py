"""Folders of image files, with captions next to them or in metadata files: img2dataset's `files` among them.

    cat.jpg  cat.txt  cat.caption  cat.json          one image, and up to three files that describe it
    metadata.jsonl | .csv | .tsv | .parquet          rows {file_name, text, language, ...}, in any folder
    00000.parquet                                    img2dataset's table of a folder, with the rows that failed

An image has the captions of all rows that name it. Only where there are none do the files next to it count, and of
these the JSON file only where the others hold nothing. A caption file belongs to every image with its stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own.columns import asks_for_columns, check_columns
from altdiffusion.curation.own.failed_rows import failed_rows
from altdiffusion.curation.own.listing import Listing, SourceFile, chunks, digests, opened, read_file
from altdiffusion.curation.own.metadata import Rows, is_metadata, json_object, read_metadata
from altdiffusion.curation.own.sample import Caption, Sample, field_captions, is_image_name, is_unsafe, lower_keys
from altdiffusion.curation.own.texts import file_captions
from altdiffusion.curation.rejects import NO_CAPTION, NO_IMAGE, TOO_LARGE, UNSAFE_PATH, Refused
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit

NEXT_TO = ("txt", "caption", "json")
"""Extensions of the files that describe the image of the same stem."""
_LOOKED_AT = 64
"""JSON files that are read for their columns when a folder is planned."""
_TABLE = re.compile(r"\d{5,}\.parquet")
"""img2dataset's table of a folder or tar file."""


@dataclass(kw_only=True)
class Folder:
    """The files of a folder by what they are for."""

    images: list[SourceFile] = field(default_factory=list)
    beside: dict[str, list[SourceFile]] = field(default_factory=dict)
    """By stem, in the order of NEXT_TO."""
    metadata: list[SourceFile] = field(default_factory=list)
    tables: list[SourceFile] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    """Number of files that are not read, by extension."""


def sort_folder(listing: Listing) -> Folder:
    """Return what each file of a folder is for."""
    folder = Folder()
    stems = {_stem(file.key) for file in listing.files if is_image_name(file.key)}
    for file in listing.files:
        kind = file.key.rpartition(".")[2].lower()
        if is_image_name(file.key):
            folder.images.append(file)
        elif is_metadata(file):
            folder.metadata.append(file)
        elif kind in NEXT_TO and _stem(file.key) in stems:
            folder.beside.setdefault(_stem(file.key), []).append(file)
        elif _TABLE.fullmatch(file.key.rpartition("/")[2]):
            folder.tables.append(file)
        else:
            kind = kind if "." in file.key else "no extension"
            folder.others[kind] = folder.others.get(kind, 0) + 1
    for files in folder.beside.values():
        files.sort(key=lambda file: NEXT_TO.index(file.key.rpartition(".")[2].lower()))
    return folder


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def notes(listing: Listing, folder: Folder) -> Iterator[str]:
    """Yield what a person should know about a folder before it is imported."""
    shared: dict[str, int] = {}
    for image in folder.images:
        if _stem(image.key) in folder.beside:
            shared[_stem(image.key)] = shared.get(_stem(image.key), 0) + 1
    several = sum(count for count in shared.values() if count > 1)
    if several:
        yield f"{several:,} images share a caption file with another image of the same stem; each gets the caption"
    if folder.others:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(folder.others.items()))
        yield f"files that are not read, by extension: {kinds}"
    if listing.linked_folders:
        yield f"symbolic links to folders, which are not followed: {listing.linked_folders:,}"
    if listing.broken_links:
        yield f"symbolic links that lead to nothing: {listing.broken_links:,}"


def plan_folder(folder: Folder, config: OwnConfig) -> tuple[list[Unit], list[list[str]]]:
    """Return the units of a folder, and [name, identity] of everything that is read.

    Raises:
        AltDiffusionError: a metadata file cannot be read, or lacks a column that the config names.
    """
    beside = [file for files in folder.beside.values() for file in files]
    everything = [*folder.images, *beside, *folder.metadata, *folder.tables]
    identity = dict(zip((file.uri for file in everything), digests(everything), strict=True))
    rows = _rows(folder.metadata, identity, config)
    _check_columns(folder, rows, config)
    named = {file.key for file in folder.images}
    items: list[dict[str, Any]] = []
    for file in folder.images:
        near = folder.beside.get(_stem(file.key), ())
        items.append(
            {"name": file.key, **_described(file, identity), "beside": [_described(f, identity) for f in near]}
        )
    items += [{"name": name} for name in rows if name not in named]
    items.sort(key=lambda item: (item["name"], item.get("uri", "")))
    metadata = [{"name": file.name, **_described(file, identity)} for file in folder.metadata]
    units: list[Unit] = []
    for start, stop in chunks(len(items), config.rows_per_unit):
        part = items[start:stop]
        reads = [_read(item) for item in part] + [[one["digest"]] for one in metadata]
        units.append(new_unit(len(units), reads, {"items": part, "metadata": metadata}, name=config.name))
    for file in folder.tables:
        payload = {"items": [], "metadata": [], "table": _described(file, identity)}
        units.append(new_unit(len(units), [file.key, identity[file.uri]], payload, name=config.name))
    return units, sorted([file.key, identity[file.uri]] for file in everything)


def _check_columns(folder: Folder, rows: Rows, config: OwnConfig) -> None:
    """Refuse a folder whose metadata lack a column that the config names; JSON files are looked at up to the 64th."""
    names = {name for found in rows.values() for row in found for name in row}
    beside = [file for files in folder.beside.values() for file in files if not file.leads_out]
    described = [file for file in beside if file.key.lower().endswith(".json")]
    if asks_for_columns(config, names):
        for file in described[:_LOOKED_AT]:
            names |= _keys(file)
    looked = f", the first {_LOOKED_AT} JSON files" if len(described) > _LOOKED_AT else ""
    check_columns(config, names, f"source {config.uri}{looked}", has_captions=bool(beside) or not rows)


def _keys(file: SourceFile) -> set[str]:
    with opened(file.uri) as source:
        body = source.read()
    try:
        return set(lower_keys(json_object(body, file.uri)))
    except AltDiffusionError:  # not every JSON file that has an image's stem describes it
        return set()


def _described(file: SourceFile, identity: Mapping[str, str]) -> dict[str, Any]:
    return {"uri": file.uri, "digest": identity[file.uri], **({"leads_out": True} if file.leads_out else {})}


def _read(item: Mapping[str, Any]) -> list[Any]:
    return [item["name"], item.get("digest"), *(one["digest"] for one in item.get("beside", ()))]


def _rows(metadata: Sequence[SourceFile], identity: Mapping[str, str], config: OwnConfig) -> Rows:
    found: Rows = {}
    for file in metadata:
        for name, rows in read_metadata(file, identity[file.uri], config.caption_encoding).items():
            found.setdefault(name, []).extend(rows)
    return found


class FolderReader:
    """Reads the units of a folder; keeps the metadata from unit to unit."""

    def __init__(self, config: OwnConfig) -> None:
        self._config = config
        self._kept: tuple[Any, Rows] = ((), {})

    def __call__(self, unit: Unit) -> Iterator[Sample]:
        """Yield the samples of a unit.

        Raises:
            AltDiffusionError: a file is gone, or another one since planning.
        """
        if "table" in unit.payload:
            yield from failed_rows(unit.payload["table"]["uri"], unit.payload["table"]["digest"])
            return
        rows = self._metadata(unit.payload["metadata"])
        for item in unit.payload["items"]:
            yield self._sample(item, rows.get(item["name"], ()))

    def _metadata(self, described: Sequence[Mapping[str, Any]]) -> Rows:
        wanted = tuple((one["uri"], one["digest"]) for one in described)
        if self._kept[0] != wanted:
            listed = [SourceFile(name=one["name"], uri=one["uri"], size=0) for one in described]
            digest = {one["uri"]: str(one["digest"]) for one in described}
            self._kept = (wanted, _rows(listed, digest, self._config))
        return self._kept[1]

    def _sample(self, item: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Sample:
        name = str(item["name"])
        fields: dict[str, Any] = {}
        captions: list[Caption] = []
        try:
            for row in rows:
                captions += self._captions(row)
                fields = {**row, **fields}
            if "uri" not in item:
                raise Refused(UNSAFE_PATH if is_unsafe(name) else NO_IMAGE, name)
            if item.get("leads_out"):
                raise Refused(UNSAFE_PATH, "a symbolic link leads out of the source")
            captions, fields = self._beside(item, captions, fields)
            if not captions:
                raise Refused(NO_CAPTION)
            body = read_file(item["uri"], item["digest"], self._config.store.max_bytes)
            if isinstance(body, int):
                raise Refused(TOO_LARGE, f"{body} bytes")
        except Refused as refused:
            return Sample(name=name, captions=captions, fields=fields, refused=refused)
        return Sample(name=name, body=body, captions=captions, fields=fields)

    def _beside(
        self, item: Mapping[str, Any], captions: list[Caption], fields: dict[str, Any]
    ) -> tuple[list[Caption], dict[str, Any]]:
        """Return captions and fields with those of the files next to an image."""
        for one in item["beside"]:
            if one.get("leads_out"):
                raise Refused(UNSAFE_PATH, "a symbolic link of the caption leads out of the source")
        near: list[Caption] = []
        for one in item["beside"]:
            body = read_file(one["uri"], one["digest"])
            assert isinstance(body, bytes)
            if str(one["uri"]).lower().endswith(".json"):
                try:
                    stated = lower_keys(json_object(body, one["uri"]))
                except AltDiffusionError:  # not every JSON file that has an image's stem describes it
                    continue
                fields = {**stated, **fields}
                near = near or self._captions(stated)
            else:
                near += file_captions(body, self._config.caption_encoding)
        return captions or near, fields

    def _captions(self, row: Mapping[str, Any]) -> list[Caption]:
        config = self._config
        return field_captions(row, config.captions, config.language_column, config.identify.languages)
