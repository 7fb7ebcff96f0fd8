"""The pages and images that may show certain rows: reports, what runs logged to MLflow, pages for human judges.

They are found by what they were made from, since an image on a page is not the bytes of the row.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph
from altdiffusion.lineage.job_folder import ABOUT, JOURNAL, job_folders
from altdiffusion.lineage.outbox import OutboxReader, Record
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document
from altdiffusion.storage.listing import list_marked

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page or image that may show the rows."""

    kind: str
    """report, artifact, sample sheet, lineage page, A/B page"""
    name: str
    """Its URI, or where MLflow shows it."""
    of: tuple[str, ...]
    """References of what it shows."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "of": list(self.of)}


def concerned(graph: Graph, refs: Set[str]) -> frozenset[str]:
    """Return these things and everything that was made from them, directly or not."""
    return graph.below(ref for ref in refs if ref in graph.nodes) | refs


def pages_of(lake_uri: str, refs: Set[str], damaged: list[AltDiffusionError]) -> list[Shown]:
    """Return what may show rows of these things; what cannot be read is added to `damaged`."""
    found = [Shown(kind="report", name=uri, of=(ref,)) for ref, uri in reports_of(lake_uri, refs)]
    for folder in journals(lake_uri):
        try:
            found += _logged(folder, refs)
        except AltDiffusionError as error:
            damaged.append(error)
    for name in files.list_names(files.join(lake_uri, "ab")):
        try:
            document = optional_document(files.within(lake_uri, "ab", name))
        except AltDiffusionError as error:
            damaged.append(error)
            continue
        sides = {str(document.value.get(key)) for key in ("a", "b")} if document is not None else set()
        if sides & refs:
            found.append(
                Shown(kind="A/B page", name=f"page {name.removesuffix('.json')}", of=tuple(sorted(sides & refs)))
            )
    return found


def reports_of(lake_uri: str, refs: Set[str]) -> list[tuple[str, str]]:
    """Return (reference, URI of its report) for the versions among these that have one."""
    names = {ref.removeprefix("dataset:").partition("@")[0] for ref in refs if ref.startswith("dataset:")}
    found = []
    for name in sorted(names):
        root = files.join(lake_uri, "datasets", name, "versions")
        for one in list_marked(root, 1, REPORT):
            ref = f"dataset:{name}@{one.parts[0]}"
            if ref in refs:
                found.append((ref, files.join(root, *one.parts, REPORT)))
    return sorted(found)


def journals(lake_uri: str) -> list[str]:
    """Return the folders of all journals in a lake."""
    return job_folders(lake_uri) if files.is_local(lake_uri) else []


def read_journal(folder: str) -> list[Record]:
    """Return all records of a journal."""
    reader = OutboxReader(files.within(folder, JOURNAL), remember=False)
    records: list[Record] = []
    while (chunk := reader.read()) is not None:
        records += chunk.records
        reader.commit(chunk.end)
    return records


def refs_in(records: list[Record]) -> frozenset[str]:
    """Return what a job used or made."""
    return frozenset(str(record["ref"]) for record in records if isinstance(record.get("ref"), str))


def _logged(folder: str, refs: Set[str]) -> list[Shown]:
    records = read_journal(folder)
    mine = tuple(sorted(refs_in(records) & refs))
    about = optional_document(files.within(folder, ABOUT))
    if not mine or about is None:
        return []
    run = f"MLflow, run {about.text('job')}/{about.text('name')}"
    found = {}
    for record in records:
        operation = record.get("op")
        if operation == "image":
            found[f"{run}: {record.get('key')}, step {record.get('step')}"] = "sample sheet"
        elif operation == "artifact":
            below = f"{record['path']}/" if record.get("path") else ""
            found[f"{run}: {below}{str(record.get('file')).rsplit('/', 1)[-1]}"] = "artifact"
        elif operation == "picture":
            found[f"{run}: lineage.html"] = "lineage page"
    return [Shown(kind=kind, name=name, of=mine) for name, kind in found.items()]
