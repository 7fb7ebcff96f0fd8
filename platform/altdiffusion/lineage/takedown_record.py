"""The records of takedowns: who asked for what and when, and everything that it concerned, for ever.

    <lake>/takedowns/<sha256>.record.json    named by the file's SHA-256; never rewritten

A record is written before anything is removed, and holds hashes only: names and digests of versions, checkpoints,
exports and generated sets, next to the files of tombstones and of rows that it names. So it answers after the versions
themselves were erased.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.lineage.impact import Impact
from altdiffusion.storage import files
from altdiffusion.storage.cleansing import REASON
from altdiffusion.storage.documents import Document, read_document
from altdiffusion.storage.takedown_rows import listed_rows, read_rows
from altdiffusion.storage.tombstones import FOLDER, REMEDY, Ids, Tombstones, covers, read_file

SUFFIX = ".record.json"
FORMAT = "altdiffusion-takedown-1"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    list_sha256: str
    """SHA-256 (hex) of the file that lists the rows."""
    entries: Mapping[str, int]
    """Number of its entries by kind."""
    reason: str
    """Free text: why; empty where it was not stated."""
    by: str
    """Free text: who asked; empty where it was not stated."""
    when: str
    """Time of the request, ISO 8601, UTC."""
    of: str
    """Reference of the version from which rows were removed; of several, with commas between them."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One takedown, as it was before anything was removed."""

    request: Request
    tombstones: str
    """Name of its file of tombstones."""
    rows: str
    """Name of its file of rows."""
    searched: frozenset[str]
    """References of all versions that were searched."""
    held: Mapping[str, tuple[int, int]]
    """Accepted rows, and rejected rows with link, of each version that held some."""
    nodes: tuple[Node, ...]
    """These versions, and what was made from the rows; the lake may lack them by now."""


def write_record(lake_uri: str, request: Request, found: Impact, graph: Graph, *, tombstones: str, rows: str) -> str:
    """Write a record, unless an earlier one of the same request has all of it, and return the name of its file."""
    nodes = [held.node for held in (*found.held, *found.erased)] + [made.node for made in found.made]
    nodes = [node for node in nodes if not _made_by(request, node)]
    value = {
        "format": FORMAT,
        "list_sha256": request.list_sha256,
        "entries": dict(request.entries),
        "reason": request.reason,
        "by": request.by,
        "when": request.when,
        "of": request.of,
        "tombstones": tombstones,
        "rows": rows,
        "searched": sorted(n.ref for n in graph.nodes.values() if n.kind == "dataset" and not n.missing),
        "held": {one.node.ref: {"rows": one.rows, "rejected": one.rejected} for one in found.held},
        "nodes": [_node_json(node) for node in nodes],
    }
    refs = {node.ref for node in nodes}
    for name, known in _records(lake_uri):
        same = (known.request.list_sha256, known.request.reason, known.request.by) == (
            request.list_sha256, request.reason, request.by,
        )  # fmt: skip
        if same and known.tombstones == tombstones and refs <= {node.ref for node in known.nodes}:
            return name
    data = files.canonical_json(value)
    name = f"{files.sha256_hex(data)}{SUFFIX}"
    files.write_atomic(files.within(lake_uri, FOLDER, name), data)
    return name


def _made_by(request: Request, node: Node) -> bool:
    """Return whether a version is one that this takedown made, when it ran before: the first record is whole."""
    return node.kind == "dataset" and (node.facts.get("config") or {}).get(REASON) == request.list_sha256


def _node_json(node: Node) -> dict[str, Any]:
    facts = {key: node.facts[key] for key in ("holds", "rows", "run", "step", "stage", "weights") if key in node.facts}
    return {
        "ref": node.ref,
        "kind": node.kind,
        "name": node.name,
        "digest": node.digest,
        "parents": list(node.parents),
        "facts": facts,
    }


def read_records(lake_uri: str, damaged: list[AltDiffusionError] | None = None) -> list[Record]:
    """Return all records of a lake, oldest first.

    Args:
        damaged: takes the errors of damaged records, which are left out; None raises the first one.

    Raises:
        AltDiffusionError: a record is damaged, and `damaged` is None.
    """
    return sorted((record for _, record in _records(lake_uri, damaged)), key=lambda record: record.request.when)


def _records(lake_uri: str, damaged: list[AltDiffusionError] | None = None) -> list[tuple[str, Record]]:
    found = []
    for name in files.list_names(files.join(lake_uri, FOLDER)):
        if name.endswith(SUFFIX):
            try:
                found.append((name, _read(lake_uri, name)))
            except AltDiffusionError as error:
                if damaged is None:
                    raise
                damaged.append(error)
    return found


def _read(lake_uri: str, name: str) -> Record:
    uri = files.within(lake_uri, FOLDER, name)
    if files.sha256_hex(files.read_bytes(uri)) != name.removesuffix(SUFFIX):
        raise AltDiffusionError(f"record of a takedown {uri}", "is damaged: its SHA-256 is not its name", REMEDY)
    document = read_document(uri, remedy=REMEDY)
    held = document.object("held")
    return Record(
        request=Request(
            list_sha256=document.digest("list_sha256"),
            entries=document.counts("entries"),
            reason=document.text("reason"),
            by=document.text("by"),
            when=document.text("when"),
            of=document.text("of"),
        ),
        tombstones=document.name("tombstones"),
        rows=document.name("rows"),
        searched=frozenset(document.refs("searched")),
        held={ref: (held.object(ref).count("rows"), held.object(ref).count("rejected")) for ref in held.value},
        nodes=tuple(_node(one) for one in document.objects("nodes")),
    )


def _node(document: Document) -> Node:
    return Node(
        ref=document.text("ref"),
        kind=document.text("kind"),
        name=document.text("name"),
        digest=document.text("digest"),
        parents=document.texts("parents"),
        missing=True,
        facts=document.object("facts").value,
    )


@dataclass(frozen=True, kw_only=True)
class Past:
    """What the records of a lake know of a list."""

    records: tuple[Record, ...]
    """Those whose rows the list names."""
    numbers: Mapping[str, Ids]
    """Row numbers, ascending, by the reference of the version that held them."""
    covered: frozenset[str]
    """References of versions that were searched for everything that the list names."""
    damaged: tuple[AltDiffusionError, ...] = ()
    """Records that cannot be read, or whose files cannot: what they know is missing here."""

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows by the reference of the version that held them."""
        return {ref: len(numbers) for ref, numbers in self.numbers.items()}

    def fill(self, graph: Graph) -> Graph:
        """Return a graph that also has what is gone from the lake by now."""
        known = {node.ref: node for record in self.records for node in record.nodes}
        gone = [node for ref, node in known.items() if ref not in graph.nodes or graph.nodes[ref].missing]
        return graph.with_nodes(gone)


def past_of(lake_uri: str, listed: Tombstones) -> Past:
    """Return what the records of a lake know of a list.

    Args:
        listed: the list's entries (`links.takedown.TakedownList.tombstones`).
    """
    damaged: list[AltDiffusionError] = []
    every, found, covered = read_records(lake_uri, damaged), [], []
    for record in every:
        try:
            rows = listed_rows([read_rows(lake_uri, record.rows)], listed)
            if covers(read_file(lake_uri, record.tombstones), listed):
                covered.append(record.searched)
        except AltDiffusionError as error:
            damaged.append(error)
        else:
            found.append((record, rows))
    return Past(
        records=tuple(record for record, rows in found if rows.num_rows),
        numbers=_numbers(listed_rows([rows for _, rows in found], listed)),
        covered=frozenset().union(*covered) if covered else frozenset(),
        damaged=tuple(damaged),
    )


def _numbers(table: pa.Table) -> dict[str, Ids]:
    by_version = table.group_by("version").aggregate([("row", "list")])
    return {
        ref: np.unique(np.array(rows, np.int64))
        for ref, rows in zip(by_version["version"].to_pylist(), by_version["row_list"].to_pylist(), strict=True)
    }


def rows_taken_from(lake_uri: str, records: Sequence[Record], ref: str, damaged: list[AltDiffusionError]) -> list[int]:
    """Return the numbers of the rows that were ever taken down from a version, ascending.

    Args:
        damaged: takes the errors of files that cannot be read; their rows are left out.
    """
    numbers: set[int] = set()
    for record in records:
        if ref in record.held:
            try:
                table = read_rows(lake_uri, record.rows)
            except AltDiffusionError as error:
                damaged.append(error)
                continue
            mine = [version == ref for version in table["version"].to_pylist()]
            numbers.update(table.filter(pa.array(mine, pa.bool_()))["row"].to_pylist())
    return sorted(numbers)
