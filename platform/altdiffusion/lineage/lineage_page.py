"""lineage.html: one self-contained drawing of the graph around a node, from its sources to what was made from it.

It is a layered drawing (a small form of Sugiyama's scheme): a node's column is its longest distance from the centre
node, an edge over several columns gets a lane in each, the order within a column is by barycentres, and heights relax
towards those of the neighbours.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.lineage.tree import describe

BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP, LANE_HEIGHT, MARGIN = 212, 64, 46, 18, 14, 24
MAX_BELOW = 40  # what was made of the node, nearest first; the rest is counted
_SWEEPS = 12
_COLOURS = {
    "dataset": "#2a78c2",
    "checkpoint": "#b3541e",
    "export": "#8a6d00",
    "model": "#7b4fb5",
    "source": "#4f7a28",
    "blocklist": "#7d3c3c",
    "image": "#b02a6b",
    "prompt": "#4a6a7c",
    "row": "#4a6a7c",
}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    columns: list[list[str]]  # nodes and lanes, top to bottom
    centre: dict[str, float]  # y of each
    paths: list[list[str]]  # an edge as the nodes and lanes it passes


def render(graph: Graph, ref: str) -> str:
    """Return the page around a node of the graph."""
    above, below = graph.up(ref), graph.down(ref)
    kept = list(below.nodes)[: MAX_BELOW + 1]
    nodes = {**above.nodes, **{key: below.nodes[key] for key in kept}}
    layout = _layout(nodes, _columns(nodes, ref))
    left = len(below.nodes) - len(kept)
    note = f"<p>{left} more things made from it are not drawn.</p>" if left else ""
    root = nodes[ref]
    heading = html.escape(f"Lineage of {root.kind} {root.name}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{heading}</h1>\n"
        f"<p>Sources on the left; each arrow leads from a thing to what was made of it.</p>{note}\n"
        f'<div class="picture">{_svg(nodes, layout, ref)}</div>\n{_table(nodes, layout)}</body></html>\n'
    )


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


def _svg(nodes: Mapping[str, Node], layout: _Layout, root: str) -> str:
    at = {item: index for index, items in enumerate(layout.columns) for item in items}
    step = BOX_WIDTH + COLUMN_GAP
    width = len(layout.columns) * step - COLUMN_GAP + 2 * MARGIN
    height = max(layout.centre[item] + _height(item, nodes) / 2 for item in layout.centre) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" class="tip"/></marker></defs>',
    ]
    for path in layout.paths:
        parts.append(f'<path class="edge" marker-end="url(#tip)" d="{_curve(path, at, layout.centre, step, nodes)}"/>')
    for ref, node in sorted(nodes.items()):
        parts.append(_box(node, MARGIN + at[ref] * step, layout.centre[ref] - BOX_HEIGHT / 2, ref == root))
    return "\n".join([*parts, "</svg>"])


def _curve(
    path: Sequence[str], at: Mapping[str, int], centre: Mapping[str, float], step: int, nodes: Mapping[str, Node]
) -> str:
    x, y = MARGIN + at[path[0]] * step + BOX_WIDTH, centre[path[0]]
    words = [f"M{x} {y:.1f}"]
    for item in path[1:]:
        to_x, to_y = MARGIN + at[item] * step, centre[item]
        middle = (x + to_x) / 2
        words.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x} {to_y:.1f}")
        x, y = to_x, to_y
        if item not in nodes:  # a lane: straight through the column
            x += BOX_WIDTH
            words.append(f"L{x} {y:.1f}")
    return " ".join(words)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _box(node: Node, x: float, y: float, is_root: bool) -> str:
    classes = "box" + (" root" if is_root else "") + (" missing" if node.missing else "")
    colour = _COLOURS[node.kind]
    about = describe(node)
    tooltip = html.escape(f"{node.ref}\n{about}")
    head = f"{node.kind}  {node.digest[:12]}".strip()
    return (
        f'<g transform="translate({x:.1f} {y:.1f})"><title>{tooltip}</title>'
        f'<rect class="{classes}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<rect width="5" height="{BOX_HEIGHT}" rx="2.5" fill="{colour}"/>'
        f'<text x="16" y="18" class="head" style="fill: {colour}">{html.escape(head)}</text>'
        f'<text x="16" y="36" class="name">{html.escape(_cut(node.name, 27))}</text>'
        f'<text x="16" y="53" class="about">{html.escape(_cut(about, 34))}</text></g>'
    )


def _table(nodes: Mapping[str, Node], layout: _Layout) -> str:
    rows = [
        f"<tr><td>{html.escape(nodes[item].kind)}</td><td>{html.escape(nodes[item].name)}</td>"
        f"<td><code>{html.escape(nodes[item].digest)}</code></td><td>{html.escape(describe(nodes[item]))}</td></tr>"
        for items in layout.columns
        for item in items
        if item in nodes
    ]
    return f"<table><tr><th>kind</th><th>name</th><th>digest</th><th>what</th></tr>\n{chr(10).join(rows)}\n</table>"


_STYLE = """
:root { color-scheme: light dark; }
:root { --ink: #1c2430; --soft: #5b6675; --paper: #ffffff; --card: #f6f8fa; --line: #9aa5b1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --soft: #a4b0bd; --paper: #14181d; --card: #1e242b; --line: #66727f; }
}
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 24px; }
h1 { font-size: 18px; margin: 0 0 4px; } p { color: var(--soft); margin: 0 0 12px; }
.picture { overflow-x: auto; } svg { max-width: 100%; min-width: min(1200px, 100%); height: auto; }
.box { fill: var(--card); stroke: var(--line); } .root { stroke: var(--ink); stroke-width: 2.5; }
.missing { stroke-dasharray: 5 4; }
.edge { fill: none; stroke: var(--line); stroke-width: 1.5; } .tip { fill: var(--line); }
text { font: 12px system-ui, sans-serif; fill: var(--ink); } text.head { font-weight: 600; }
text.name { font-size: 13px; font-weight: 600; } text.about { fill: var(--soft); font-size: 11px; }
table { border-collapse: collapse; margin-top: 20px; font-size: 13px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); }
code { font-size: 11px; overflow-wrap: anywhere; }
"""
