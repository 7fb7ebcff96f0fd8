"""Pages and copies of files without rows that were taken down: `--purge` of `dataset remove` and `dataset erase`.

Reports of versions that held the rows, or were made from those, are made again from the version that replaced them.
Every other file that jobs left for people, in the lake and among MLflow's artifacts, is searched for the rows' links,
captions and images; a page that holds one is replaced by a notice, and an image by an empty one. Nothing is searched
that a manifest names: shards are what `remove` and `erase` are for.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from altdiffusion.curation.report.write_report import report_html
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.anchor import ARTIFACTS
from altdiffusion.lineage.job_folder import ABOUT
from altdiffusion.lineage.outbox import Record
from altdiffusion.lineage.shown import REPORT, journals, read_journal, refs_in, reports_of
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.documents import optional_document
from altdiffusion.storage.holdings import Holdings
from altdiffusion.storage.removal import after_takedowns
from altdiffusion.storage.shard_columns import read_columns

NOTICE = b"<!doctype html><meta charset=utf-8><title>Removed</title><p>This page showed rows that were taken down."
LEAST = 8
"""Shorter captions are not searched for: they are words that occur everywhere."""
_SHOWN = 120
"""Characters of a text that are searched for, since pages cut long ones off."""
_COLUMNS = ("url", "final_url", "caption", "image", "image_sha256")


@dataclass(frozen=True, kw_only=True)
class Needles:
    """What must not be found in any file."""

    parts: frozenset[bytes] = frozenset()
    """Texts in every form in which a page may hold them, and images as they are and in base64."""
    images: frozenset[str] = frozenset()
    """SHA-256 (hex) of images."""

    def are_in(self, data: bytes) -> bool:
        """Return whether a file holds any of them."""
        return files.sha256_hex(data) in self.images or any(part in data for part in self.parts)


def needles_of(holdings: Holdings) -> Needles:
    """Return links, captions and images of the rows that were found, while the lake still holds them."""
    texts: set[str] = set()
    bodies: set[bytes] = set()
    images: set[str] = set()
    for version in holdings.versions:
        names = [name for name in _COLUMNS if name in version.schema_names]
        for shard, rows in holdings.readable(version):
            table = read_columns(files.join(version.folder_uri, "shards"), version.shards[shard], names).take(rows)
            for row in table.to_pylist():
                texts |= {row[key] for key in ("url", "final_url", "caption") if row.get(key)}
                bodies |= {row["image"]} if row.get("image") else set()
                images |= {row["image_sha256"]} if row.get("image_sha256") else set()
    images |= {files.sha256_hex(body) for body in bodies}
    parts = {part for text in texts if len(text) >= LEAST for part in _forms(text[:_SHOWN])}
    parts |= {part for body in bodies for part in (body, base64.b64encode(body).rstrip(b"="))}
    return Needles(parts=frozenset(parts), images=frozenset(images))


def _forms(text: str) -> set[bytes]:
    plain = {text, html.escape(text), html.escape(text, quote=False)}
    plain |= {html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}
    plain |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return {form.encode("utf-8", "surrogatepass") for form in plain}


def purge(lake: Lake, needles: Needles, refs: Set[str]) -> list[str]:
    """Make pages again without the rows, and return the URIs of what was replaced.

    Args:
        refs: versions that held the rows, and everything that was made from them.

    Raises:
        AltDiffusionError: a file cannot be read or replaced, or an MLflow server does not answer.
    """
    remade: dict[str, bytes] = {}
    changed: list[str] = []
    for ref, uri in reports_of(lake.uri, refs):
        before = files.read_bytes(uri)
        remade[files.sha256_hex(before)] = after = _report(lake, ref, needles)
        if after != before:
            files.write_atomic(uri, after)
            changed.append(uri)
    for folder in journals(lake.uri):
        changed += _purge_journal(folder, lake, needles, remade, refs)
    for uri in _left_for_people(lake.uri):
        changed += _purge_file(uri, needles, remade)
    return changed


def _report(lake: Lake, ref: str, needles: Needles) -> bytes:
    """Return the report of the version that replaced one, or the notice where a report would still show the rows."""
    version = lake.version(ref)
    try:
        data = report_html(lake, after_takedowns(lake.dataset(version.manifest.name), version)).encode()
    except AltDiffusionError:  # a file that it needs was erased
        return NOTICE
    return NOTICE if needles.are_in(data) else data


def _purge_journal(
    folder: str, lake: Lake, needles: Needles, remade: dict[str, bytes], refs: Set[str]
) -> Iterator[str]:
    """Replace the copies that a journal keeps, and what MLflow shows of them.

    Args:
        remade: new reports by the SHA-256 of the old ones; copies of this journal are added.
    """
    records = read_journal(folder)
    if refs_in(records) & refs:  # a report that was written over since is not known by its content
        remade.update(_unknown_reports(folder, remade))
    replaced = [
        (record, path) for record in records for path in _files_of(folder, record) if _purge_file(path, needles, remade)
    ]
    yield from dict.fromkeys(path for _, path in replaced)
    if not replaced:
        return
    about = optional_document(files.within(folder, ABOUT))
    uri = about.text("uri") if about is not None and "uri" in about.value else ""
    for record, path in replaced:
        if record["op"] == "image":
            yield from _remove_image(lake.uri, str(record["file"]))
        elif uri.startswith("http") and about is not None:
            client = connect(uri, lake.uri).client
            client.log_artifact(about.text("run_id"), path, record.get("path"))


def _unknown_reports(folder: str, remade: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the notice for each copy of a report that is not a report of the lake: it was written over since."""
    known = {*remade, *map(files.sha256_hex, remade.values())}
    found = {}
    for parent, _, names in os.walk(os.path.join(folder, "files")):
        for name in names:
            if name == REPORT:
                found[files.sha256_hex(files.read_bytes(os.path.join(parent, name)))] = NOTICE
    return {digest: notice for digest, notice in found.items() if digest not in known}


def _files_of(folder: str, record: Record) -> list[str]:
    """Return the paths of the copies that a journal's line names; a symbolic link is not followed."""
    if record.get("op") not in ("artifact", "image") or not isinstance(record.get("file"), str):
        return []
    path = os.path.join(folder, str(record["file"]))
    if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), "files", "")):
        return []
    found = [path] if os.path.isfile(path) else []
    found += [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names]
    return [one for one in found if not os.path.islink(one)]


def _remove_image(lake_uri: str, file: str) -> Iterator[str]:
    """Remove an image and its thumbnail from MLflow's artifacts in the lake, whose names follow from its content."""
    name = os.path.basename(file).partition(".")[0]
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    for parent, _, names in os.walk(files.join(files.local_path(lake_uri), ARTIFACTS)):
        for one in names:
            if identity in one:
                os.unlink(os.path.join(parent, one))
                yield os.path.join(parent, one)


def _left_for_people(lake_uri: str) -> Iterator[str]:
    """Yield the files of a lake that no manifest names and that are neither weights nor records of takedowns."""
    if not files.is_local(lake_uri):
        return
    root = files.local_path(lake_uri)
    for top in (ARTIFACTS, "tracking", "evaluations", "ab"):
        for parent, _, names in os.walk(os.path.join(root, top)):
            for name in names:
                path = os.path.join(parent, name)
                if not os.path.islink(path) and not name.endswith((".jsonl", ".offset", "job.json", ".parquet")):
                    yield path


def _purge_file(path: str, needles: Needles, remade: Mapping[str, bytes]) -> list[str]:
    """Replace a file that holds the rows, or that is a copy of a report; return its path if it was replaced."""
    if not os.path.exists(path):
        return []
    data = files.read_bytes(path)
    after = remade.get(files.sha256_hex(data), data)
    if needles.are_in(after):
        after = _empty_image() if path.endswith((".png", ".webp", ".jpg", ".img")) else NOTICE
    if after == data:
        return []
    files.write_atomic(path, after)
    return [path]


def _empty_image() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(out, "PNG")
    return out.getvalue()
