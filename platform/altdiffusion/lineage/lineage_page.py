"""lineage.html: one drawing of the graph around a node, from its sources to what was made from it, or of a lake.

It is a layered drawing (a small form of Sugiyama's scheme): a node's column is its longest distance from the centre
node, an edge over several columns gets a lane in each, the order within a column is by barycentres, and heights relax
towards those of the neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from altdiffusion.errors import AltDiffusionError
from altdiffusion.html import page
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.lineage.tree import describe
from altdiffusion.storage import files

BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP, LANE_HEIGHT, MARGIN = 236, 88, 40, 18, 14, 12
MAX_BELOW = 40  # what was made from the node, nearest first; the rest is counted
MAX_NODES = 300  # of the page of a whole lake
_SWEEPS = 12


@dataclass(frozen=True, kw_only=True)
class _Layout:
    columns: list[list[str]]  # nodes and lanes, top to bottom
    centre: dict[str, float]  # y of each
    paths: list[list[str]]  # an edge as the nodes and lanes it passes


@dataclass(frozen=True, kw_only=True)
class _Box:
    """A node as it is drawn; lengths are in units of the drawing."""

    node: Node
    about: str
    written: str
    """Day on which its file was written; empty where this machine does not hold it."""
    href: str
    """Where its name leads: to its own page, else to its row."""
    row: str
    x: float
    y: float
    is_root: bool


def render(graph: Graph, ref: str, pages: Mapping[str, str] | None = None) -> str:
    """Return the page around a node of the graph.

    Args:
        pages: reference -> address of its own page, for those that have one.
    """
    above, below = graph.up(ref), graph.down(ref)
    kept = list(below.nodes)[: MAX_BELOW + 1]
    nodes = {**above.nodes, **{key: below.nodes[key] for key in kept}}
    title = f"{nodes[ref].kind} {page.plain(nodes[ref].name)}"
    return _page(title, nodes, _columns(nodes, ref), pages or {}, root=ref, left_out=len(below.nodes) - len(kept))


def render_lake(graph: Graph, pages: Mapping[str, str] | None = None) -> str:
    """Return the page of a whole lake: its newest versions and checkpoints, and what they were made from.

    Args:
        pages: as in `render`.

    Raises:
        AltDiffusionError: the lake holds nothing.
    """
    nodes = _newest(graph)
    if not nodes:
        raise AltDiffusionError(f"lake {graph.lake_uri}", "holds nothing that could be drawn", "run a job first")
    title = f"lake {page.plain(graph.lake_uri.rstrip('/').rpartition('/')[2])}"
    return _page(title, nodes, _ranks(nodes), pages or {}, root="", left_out=len(graph.nodes) - len(nodes))


def _newest(graph: Graph) -> dict[str, Node]:
    """Return what a page can show of a lake: heads, the newest checkpoint of each run, exports, and their ancestors."""
    last: dict[str, Node] = {}
    ends: list[Node] = []
    for node in graph.nodes.values():
        if node.kind == "checkpoint":
            run = str(node.facts.get("run", node.name))
            if run not in last or int(last[run].facts.get("step", 0)) < int(node.facts.get("step", 0)):
                last[run] = node
        elif node.kind != "dataset" or graph.heads.get(node.name) == node.digest:
            ends.append(node)
    nodes: dict[str, Node] = {}
    for node in [*last.values(), *ends]:
        more = graph.up(node.ref).nodes
        if len(nodes.keys() | more.keys()) <= MAX_NODES:
            nodes.update(more)
    return nodes


def _ranks(nodes: Mapping[str, Node]) -> dict[str, int]:
    """Return the column of each node: the longest way from a source."""
    parents: dict[str, list[str]] = {ref: [] for ref in nodes}
    for parent, child in _edges(nodes):
        parents[child].append(parent)
    return {ref: rank for rank, level in enumerate(_levels(parents)) for ref in level}


def _levels(parents: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Yield the nodes whose parents were all yielded before."""
    waiting = dict(parents)
    while waiting:
        level = [ref for ref, before in waiting.items() if not any(parent in waiting for parent in before)]
        yield level
        for ref in level:
            del waiting[ref]


def _page(
    title: str,
    nodes: Mapping[str, Node],
    columns: Mapping[str, int],
    pages: Mapping[str, str],
    *,
    root: str,
    left_out: int,
) -> str:
    layout = _layout(nodes, columns)
    drawn = [(column, item) for column, items in enumerate(layout.columns) for item in items if item in nodes]
    boxes = [
        _Box(
            node=nodes[item],
            about=describe(nodes[item]),
            written=_written(nodes[item]),
            href=pages.get(item, f"#thing-{number}"),
            row=f"thing-{number}",
            x=_left(column),
            y=layout.centre[item] - BOX_HEIGHT / 2,
            is_root=item == root,
        )
        for number, (column, item) in enumerate(drawn)
    ]
    return page.render(
        "lineage.html.j2",
        title=title,
        boxes=boxes,
        box=(BOX_WIDTH, BOX_HEIGHT),
        edges=_curves(layout, nodes),
        width=_left(len(layout.columns)) - COLUMN_GAP + MARGIN,
        height=round(max(layout.centre[item] + _height(item, nodes) / 2 for item in layout.centre) + MARGIN),
        left_out=left_out,
        **page.script_of("lineage.js"),
    )


def _written(node: Node) -> str:
    """Return the day on which a node's manifest was written, by its file: manifests hold no times."""
    name = {"dataset": "manifest.json", "checkpoint": "COMPLETE.json"}.get(node.kind, "lineage.json")
    if not node.uri or not files.is_local(node.uri):
        return ""
    try:
        seconds = os.stat(files.local_path(files.join(node.uri, name))).st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _edges(nodes: Mapping[str, Node]) -> list[tuple[str, str]]:
    return [
        (parent, ref)
        for ref, node in sorted(nodes.items())
        for parent in dict.fromkeys(node.parents)
        if parent in nodes
    ]


def _columns(nodes: Mapping[str, Node], root: str) -> dict[str, int]:
    """Return the column of each node, the leftmost being 0: its longest distance before or after the root."""
    parents: dict[str, list[str]] = {ref: [] for ref in nodes}
    children: dict[str, list[str]] = {ref: [] for ref in nodes}
    for parent, child in _edges(nodes):
        parents[child].append(parent)
        children[parent].append(child)

    def distances(step: Mapping[str, list[str]]) -> dict[str, int]:
        longest = {root: 0}
        waiting = [root]
        while waiting:
            ref = waiting.pop()
            for following in step[ref]:
                if longest.get(following, -1) < longest[ref] + 1:
                    longest[following] = longest[ref] + 1
                    waiting.append(following)
        return longest

    above, below = distances(parents), distances(children)
    column = {ref: below[ref] if ref in below else -above[ref] for ref in nodes}
    leftmost = min(column.values())
    return {ref: value - leftmost for ref, value in column.items()}


def _layout(nodes: Mapping[str, Node], column: Mapping[str, int]) -> _Layout:
    columns: list[list[str]] = [[] for _ in range(max(column.values()) + 1)]
    for ref in sorted(nodes, key=lambda key: (nodes[key].kind, nodes[key].name, key)):
        columns[column[ref]].append(ref)
    paths: list[list[str]] = []
    for parent, child in _edges(nodes):
        lanes = [f"{parent}>{child}#{index}" for index in range(column[parent] + 1, column[child])]
        for index, lane in enumerate(lanes):
            columns[column[parent] + 1 + index].append(lane)
        paths.append([parent, *lanes, child])
    left: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for path in paths:
        for one, other in pairwise(path):
            right.setdefault(one, []).append(other)
            left.setdefault(other, []).append(one)
    centre = _stack(columns, nodes)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = left if forward else right
        for items in columns if forward else reversed(columns):
            wanted = {
                item: sum(centre[other] for other in neighbours[item]) / len(neighbours[item])
                if neighbours.get(item)
                else centre[item]
                for item in items
            }
            if sweep < _SWEEPS - 2:  # the order settles first, the last two sweeps only move
                items.sort(key=lambda item: (wanted[item], item))
            _place(items, wanted, nodes, centre)
    top = min(centre[item] - _height(item, nodes) / 2 for items in columns for item in items)
    return _Layout(columns=columns, centre={key: y - top + MARGIN for key, y in centre.items()}, paths=paths)


def _height(item: str, nodes: Mapping[str, Node]) -> float:
    return BOX_HEIGHT if item in nodes else LANE_HEIGHT


def _stack(columns: Sequence[Sequence[str]], nodes: Mapping[str, Node]) -> dict[str, float]:
    centre: dict[str, float] = {}
    for items in columns:
        y = -sum(_height(item, nodes) + ROW_GAP for item in items) / 2
        for item in items:
            centre[item] = y + _height(item, nodes) / 2
            y += _height(item, nodes) + ROW_GAP
    return centre


def _place(
    items: Sequence[str], wanted: Mapping[str, float], nodes: Mapping[str, Node], centre: dict[str, float]
) -> None:
    """Set the heights nearest to the wanted ones (least squares) that keep order and gaps.

    Blocks that touch move as one.
    """
    blocks: list[tuple[float, int, list[tuple[str, float]]]] = []  # wanted start, size, members with their offset
    for item in items:
        half = _height(item, nodes) / 2
        start, members = wanted[item] - half, [(item, half)]
        block = (start, 1, members)
        while blocks and blocks[-1][0] + _extent(blocks[-1], nodes) > block[0]:
            before = blocks.pop()
            extent = _extent(before, nodes)
            size = before[1] + block[1]
            mean = (before[0] * before[1] + (block[0] - extent) * block[1]) / size
            block = (mean, size, [*before[2], *((member, offset + extent) for member, offset in block[2])])
        blocks.append(block)
    for start, _, members in blocks:
        for member, offset in members:
            centre[member] = start + offset


def _extent(block: tuple[float, int, list[tuple[str, float]]], nodes: Mapping[str, Node]) -> float:
    member, offset = block[2][-1]
    return offset + _height(member, nodes) / 2 + ROW_GAP


def _left(column: int) -> int:
    return MARGIN + column * (BOX_WIDTH + COLUMN_GAP)


def _curves(layout: _Layout, nodes: Mapping[str, Node]) -> list[str]:
    """Return each edge as the data of an SVG path."""
    column = {item: number for number, items in enumerate(layout.columns) for item in items}
    curves = []
    for path in layout.paths:
        x, y = _left(column[path[0]]) + BOX_WIDTH, layout.centre[path[0]]
        parts = [f"M{x} {y:.1f}"]
        for item in path[1:]:
            to_x, to_y = _left(column[item]), layout.centre[item]
            middle = (x + to_x) / 2
            parts.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x} {to_y:.1f}")
            x, y = to_x, to_y
            if item not in nodes:  # a lane: straight through the column
                x += BOX_WIDTH
                parts.append(f"L{x} {y:.1f}")
        curves.append(" ".join(parts))
    return curves
