"""`altdiffusion lineage diff A B`: in what two things of a lake differ."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.evaluation.comparison import Compared
    from altdiffusion.lineage.difference import DatasetPair, Difference, Pair
    from altdiffusion.lineage.graph import Graph, Node

_SHOWN_IDS = 10
_SHOWN_TEXT = 100


def register(verbs: Verbs) -> None:
    """Add `diff` to the verbs of `lineage`."""
    text = "compare two datasets, runs, checkpoints, exports or sets of generated images"
    parser = verbs.add_parser(
        "diff", help=text, description=f"{text}. Exit status: 0 equal, 1 different, 2 cannot be compared."
    )
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="a reference, as in `lineage up`")
    parser.add_argument(
        "--max-rows",
        type=int,
        default=10_000_000,
        metavar="N",
        help="compare rows by id where at most N are in shards that the versions do not share (default %(default)s)",
    )
    parser.add_argument(
        "--page", metavar="FILE", help="also write the comparison of both models by language as one HTML file"
    )
    lake_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=show_difference)


def show_difference(arguments: argparse.Namespace) -> int:
    """Print in what two things differ.

    Returns:
        0 if they are equal, 1 if they differ, 3 if they seem equal and a part of the lake could not be read.

    Raises:
        AltDiffusionError: a reference names nothing, or a file that has to be read is damaged.
    """
    from altdiffusion.evaluation.comparison import compare
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage.difference import difference, find_one
    from altdiffusion.lineage.starts import read_starts
    from altdiffusion.storage import files

    if arguments.page is not None:
        files.check_local_output(f"page {arguments.page}", arguments.page)
    graph = graphs.scan(arguments.lake)
    a, b = find_one(graph, arguments.a), find_one(graph, arguments.b)
    starts = read_starts(graph.lake_uri)
    found = difference(graph, a, b, starts, max_rows=arguments.max_rows)
    evaluations = compare(graph.lake_uri, _contents(graph, a), _contents(graph, b)) if a.ref != b.ref else []
    if arguments.page is not None:
        _write_page(arguments.page, graph, a, b, evaluations)
    if arguments.json:
        value = {**found.to_json(), "evaluations": [one.to_json() for one in evaluations]}
        print(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        print("\n".join(_lines(found, evaluations)))
    damaged = report_damaged((*graph.damaged, *starts.damaged))
    return damaged if found.is_equal else 1


def _write_page(out: str, graph: Graph, a: Node, b: Node, evaluations: Sequence[Compared]) -> None:
    """Write the comparison by language.

    Raises:
        AltDiffusionError: the lake keeps no evaluation of one of them.
    """
    from altdiffusion.evaluation.figures.change_page import page_of_compared
    from altdiffusion.storage import files

    if not evaluations:
        raise AltDiffusionError(
            f"--page {out}",
            f"has nothing to show: the lake keeps no evaluations of both {a.label} and {b.label}",
            "name two exported checkpoints, and run jobs.evaluate with both as states",
        )
    page = page_of_compared(f"{a.name} and {b.name}", graph.lake_uri, (a.name, b.name), evaluations)
    files.write_atomic(out, page.encode())
    print(out, file=sys.stderr)


def _contents(graph: Graph, node: Node) -> list[str]:
    """Return the content digests of the model folders of a thing: its own, or those exported from it."""
    from altdiffusion.diffusion.folder import read_lineage

    folders = [node] if node.kind in ("export", "model") else []
    if node.kind == "checkpoint":
        children = [graph.nodes[ref] for ref in graph.children(node.ref)]
        folders = [child for child in children if child.kind == "export"]
    recorded = [(read_lineage(folder.uri) or {}).get("content") for folder in folders]
    return [content for content in recorded if isinstance(content, str)]


def _lines(found: Difference, evaluations: Sequence[Compared]) -> list[str]:
    from altdiffusion.lineage.tree import title

    lines = [f"A {title(found.a)}", f"B {title(found.b)}"]
    if found.is_equal:
        return [*lines, "equal"]
    lines += _section("config", [f"{pair.key}: {_pair(pair)}" for pair in found.config])
    data = [line for pair in found.data for line in _dataset(pair)]
    lines += _section("data", data)
    if found.equal_datasets:
        lines.append(f"equal datasets: {', '.join(found.equal_datasets)}")
    lines += _section("languages of one side alone, rows", [f"{pair.key}: {_pair(pair)}" for pair in found.languages])
    lines += _section("code", [f"{pair.key}: {_pair(pair)}" for pair in found.code])
    lines += _section("also made from", [f"{pair.key}: {_digests(pair)}" for pair in found.made_from])
    lines += _section("metrics", [f"{pair.key}: {_pair(pair)}" for pair in found.metrics])
    lines += _section("evaluations", [line for one in evaluations for line in one.lines()])
    if len(lines) == 2 + bool(found.equal_datasets):
        lines.append("their digests differ, and nothing else that is compared does")
    return lines


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _pair(pair: Pair) -> str:
    return f"{_short(pair.a)} | {_short(pair.b)}"


def _digests(pair: Pair) -> str:
    from altdiffusion.lineage.difference import ABSENT

    return " | ".join("(none)" if side is ABSENT else str(side)[:12] for side in (pair.a, pair.b))


def _short(value: object) -> str:
    from altdiffusion.lineage.difference import ABSENT

    text = str(value) if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_TEXT else f"{text[: _SHOWN_TEXT - 1]}…"


def _dataset(pair: DatasetPair) -> list[str]:
    sides = [_side(node) for node in (pair.a, pair.b)]
    lines = [f"{pair.name}: {sides[0]} | {sides[1]}"]
    if pair.a is not None and pair.b is not None and pair.languages:
        lines.append("  by language: " + ", ".join(f"{one.key} {_pair(one)}" for one in pair.languages))
    if isinstance(pair.rows, str):
        return lines if pair.a is None or pair.b is None else [*lines, f"  rows not compared by id: {pair.rows}"]
    for side, ids in (("A", pair.rows.only_a), ("B", pair.rows.only_b)):
        shown = ", ".join(str(one) for one in ids.slice(0, _SHOWN_IDS).to_pylist())
        more = f" and {len(ids) - _SHOWN_IDS:,} more" if len(ids) > _SHOWN_IDS else ""
        lines.append(f"  only in {side}: {len(ids):,} rows" + (f" ({shown}{more})" if len(ids) else ""))
    return lines


def _side(node: Node | None) -> str:
    if node is None:
        return "(none)"
    return f"@{node.digest[:12]}, " + ("not in this lake" if node.missing else f"{node.facts['rows']:,} rows")
