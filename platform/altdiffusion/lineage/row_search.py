"""From one row, by its id or its link, to the versions that hold it and what was made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Direction, Graph, Node, Slice
from altdiffusion.lineage.impact import follows
from altdiffusion.lineage.takedown_record import past_of
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import Holdings, Mask, search
from altdiffusion.storage.tombstones import Tombstones, digests_of
from altdiffusion.urls import url_key, url_keys

_ID = re.compile(r"(?:row:|hash:)?(-?[0-9]{1,19})")
_LINK = re.compile(r"(?:url:)?(https?://.+)", re.IGNORECASE)
_SHOWN = ("sample_id", "language", "caption", "url", "source", "image_sha256")


@dataclass(frozen=True, kw_only=True)
class WantedRow:
    """The rows of one id or one link (`holdings.Wanted`)."""

    text: str
    sample_id: int | None
    link: str | None
    """The link in its one form."""

    @property
    def sample_ids(self) -> pa.Array:
        """int64: rows by id."""
        return pa.array([] if self.sample_id is None else [self.sample_id], pa.int64())

    @property
    def images(self) -> pa.Array:
        """string: none."""
        return pa.array([], pa.string())

    def links(self, urls: pa.ChunkedArray) -> Mask:
        """Return which of these links are the wanted one, however they are spelled."""
        if self.link is None:
            return np.zeros(len(urls), bool)
        return np.array([key == self.link for key in url_keys(urls).to_pylist()], bool)

    @property
    def tombstones(self) -> Tombstones:
        """The same as hashes, as records of takedowns keep them."""
        return Tombstones(
            sample_ids=np.array([] if self.sample_id is None else [self.sample_id], np.int64),
            links=digests_of([] if self.link is None else [self.link]),
            domains=digests_of([]),
            images=digests_of([]),
        )


def wanted_row(text: str) -> WantedRow | None:
    """Return the row that a text names: `row:ID`, `hash:ID`, a number, `url:LINK` or a link; None if it names none."""
    link, number = _LINK.fullmatch(text), _ID.fullmatch(text)
    if link is not None:
        return WantedRow(text=link[1], sample_id=None, link=url_key(link[1]))
    if number is not None and -(2**63) <= int(number[1]) < 2**63:
        return WantedRow(text=number[1], sample_id=int(number[1]), link=None)
    return None


def lineage_of_row(graph: Graph, wanted: WantedRow, direction: Direction) -> Slice:
    """Return the slice above or below one row, or the rows of one link.

    Below it is what derives from the row: versions that hold it, and what was made from these.

    Raises:
        AltDiffusionError: no version of the lake holds such a row.
    """
    holdings = search(Lake(graph.lake_uri), wanted, listed=wanted.tombstones)
    held = [version for version in holdings.versions if len(holdings.numbers(version))]
    rejecting = [version for version in holdings.versions if holdings.readable(version, "rejects")]
    if not held and not rejecting:
        raise _unknown(graph, wanted, holdings)
    root = Node(
        ref=f"row:{wanted.text}",
        kind="row",
        name=wanted.text,
        digest="",
        parents=tuple(sorted({str(version.ref) for version in (*held, *rejecting)})),
        facts={**_facts(held, holdings), **({"rejected_in": _short(rejecting)} if rejecting else {})},
    )
    if direction == "up":
        return graph.with_nodes([root]).up(root.ref)
    return _below(graph, root, {str(version.ref) for version in held})


def _short(versions: list[Version]) -> list[str]:
    return sorted(version.ref.short for version in versions)


def _facts(held: list[Version], holdings: Holdings) -> dict[str, Any]:
    """Return what the versions state of the row; where there are several rows, of the first one."""
    facts: dict[str, Any] = {}
    ids: set[int] = set()
    for version in held:
        names = [name for name in _SHOWN if name in version.schema_names]
        rows = version.read_rows(holdings.numbers(version).tolist(), names)
        ids |= {row["sample_id"] for row in rows if row.get("sample_id") is not None}
        for name in names:
            if rows[0].get(name) is not None:
                facts.setdefault(name, rows[0][name])
    return {**facts, **({"more_rows": len(ids) - 1} if len(ids) > 1 else {})}


def _below(graph: Graph, root: Node, held: set[str]) -> Slice:
    """Return the versions that hold the row and, from there down, what derives from it."""
    steps: dict[str, tuple[str, ...]] = {root.ref: tuple(sorted(held))}
    waiting = list(held)
    while waiting:
        ref = waiting.pop()
        if ref not in steps:
            steps[ref] = tuple(c for c in graph.children(ref) if c in held or follows(graph.nodes[c]))
            waiting += steps[ref]
    nodes = {ref: root if ref == root.ref else graph.nodes[ref] for ref in steps}
    return Slice(root=root.ref, direction="down", nodes=nodes, steps=steps)


def _unknown(graph: Graph, wanted: WantedRow, holdings: Holdings) -> AltDiffusionError:
    past = past_of(graph.lake_uri, wanted.tombstones)
    what = f"row {wanted.text!r}"
    if past.records:
        return AltDiffusionError(
            what,
            f"was taken down from the lake {graph.lake_uri} ({past.records[-1].request.when})",
            "run `altdiffusion lineage impact` with a list that names it: the records of takedowns answer",
        )
    unread = len(holdings.damaged) + len(holdings.unreadable)
    also = f" that could be read; {unread:,} files could not" if unread else ""
    return AltDiffusionError(
        what,
        f"is in no version of the lake {graph.lake_uri}{also}",
        "check the id or the link; links match however they are spelled, and ids are LAION's (sample_id)",
    )
