"""`altdiffusion lineage verify REF`: every digest from a thing to its sources, computed again."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.lineage.graph import Graph
    from altdiffusion.training.proof import Proved


def register(verbs: Verbs) -> None:
    """Add `verify` to the verbs of `lineage`."""
    text = "read every file from a thing back to its sources, and compare it with its digest"
    parser = verbs.add_parser(
        "verify", help=text, description=f"{text}. Exit status: 0 all as recorded, 1 damaged or missing, 2 error."
    )
    parser.add_argument("ref", metavar="REF", help="a reference, as in `lineage up`")
    parser.add_argument("--shallow", action="store_true", help="read manifests, seals and states alone")
    lake_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=verify_lineage)


def verify_lineage(arguments: argparse.Namespace) -> int:
    """Print what was checked and what is damaged or missing.

    Returns:
        0 if all that the lake holds is as recorded, 1 if something is damaged or missing.

    Raises:
        AltDiffusionError: the lake or the reference is not usable.
    """
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import image_search
    from altdiffusion.training.proof import prove

    graph = graphs.scan(arguments.lake)
    own = _own_damage(graph, arguments.ref)
    if own:
        if arguments.json:
            print(json.dumps({"root": arguments.ref, "things": [], "damaged": [str(error) for error in own]}, indent=2))
        report_damaged(own)
        return 1
    part = image_search.lineage(graph, arguments.ref, "up")
    nodes = [part.nodes[ref] for ref in part.steps]
    found = []
    for proved in prove(graph.lake_uri, nodes, shallow=arguments.shallow):
        found.append(proved)
        if not arguments.json:
            print("\n".join(_lines(proved)))
    damages = [damage for proved in found for damage in proved.damages]
    if arguments.json:
        value = {
            "root": part.root,
            "shallow": arguments.shallow,
            "files": sum(proved.files for proved in found),
            "bytes": sum(proved.bytes for proved in found),
            "damaged": damages,
            "things": [proved.to_json() for proved in found],
        }
        print(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        counts = f"{sum(proved.files for proved in found):,} files, {sum(proved.bytes for proved in found):,} bytes"
        unchecked = sum(bool(proved.unchecked) for proved in found)
        left = f"; {unchecked:,} things not or not wholly checked" if unchecked else ""
        print(f"{len(found):,} things, {counts} read, {len(damages):,} damaged or missing{left}")
    return 1 if damages else 0


def _own_damage(graph: Graph, text: str) -> list[AltDiffusionError]:
    """Return what is damaged of the thing that is asked for, where that is why the graph does not have it."""
    if [node for node in graph.find(text) if not node.missing]:
        return []
    name, _, digest = text.rpartition(":")[2].partition("@")
    return [
        error for error in graph.damaged if f"/{name}/" in error.what and (not digest or "/versions/" not in error.what
        or f"/{digest}" in error.what)
    ]  # fmt: skip


def _lines(proved: Proved) -> list[str]:
    counts = f"{proved.files:,} files, {proved.bytes:,} bytes"
    word = "damaged" if proved.damages else "ok" if proved.files else "not checked"
    lines = [f"{word:<11} {proved.node.label}" + (f"  {counts}" if proved.files else "")]
    lines += [f"            {damage}" for damage in proved.damages]
    return [*lines, *([f"            {proved.unchecked}"] if proved.unchecked else [])]
