"""`altdiffusion lineage up|down|page REF` and `lineage rebuild`; `impact` is curation's (`curation.cli`)."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage import image_search, tree

_REF = (
    "kind:name@digest, name, name@prefix, a run's name (its newest checkpoint), 8 or more digits of a digest, "
    "or an image: its SHA-256 or its file"
)


def register(subparsers: Any) -> Any:
    """Add `lineage` to the command line.

    Args:
        subparsers: the return value of ArgumentParser.add_subparsers.

    Returns:
        The subparsers of its actions, to which other packages add theirs.
    """
    parser = subparsers.add_parser("lineage", help="show what a thing was made from, and what was made from it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="up|down|page|impact|rebuild")
    for action, text in (
        ("up", "show what a dataset, checkpoint or image was made from, back to the source"),
        ("down", "show what was made from a dataset, checkpoint or image"),
        ("page", "write both directions as one HTML page"),
    ):
        one = actions.add_parser(action, help=text)
        one.add_argument("ref", metavar="REF", help=_REF)
        _lake(one)
        if action == "page":
            one.add_argument(
                "--out", default="lineage.html", metavar="FILE", help="file to write (default %(default)s)"
            )
        else:
            one.add_argument("--json", action="store_true", help="print nodes and edges as JSON, for programs")
        one.set_defaults(run=cmd_lineage)
    again = actions.add_parser("rebuild", help="refill an empty MLflow from the manifests of a lake")
    _lake(again)
    again.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: SQLite in the lake)")
    again.add_argument("--experiment", default="altdiffusion", help="MLflow experiment (default %(default)s)")
    again.set_defaults(run=cmd_lineage)
    return actions


def _lake(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("ALTDIFFUSION_LAKE")
    parser.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )


def cmd_lineage(arguments: argparse.Namespace) -> int:
    """Run a parsed `lineage` command, print to stdout, and return the exit status.

    Raises:
        AltDiffusionError: the lake or the reference is not usable.
    """
    if arguments.action == "rebuild":
        from altdiffusion.lineage.rebuild import rebuild

        print(rebuild(arguments.lake, arguments.tracking_uri, arguments.experiment))
        return 0
    graph = graphs.scan(arguments.lake)
    if arguments.action == "page":
        from altdiffusion.lineage import lineage_page
        from altdiffusion.storage import files

        root = image_search.lineage(graph, arguments.ref, "up")
        extra = [node for ref, node in root.nodes.items() if ref not in graph.nodes]
        files.write_atomic(arguments.out, lineage_page.render(graph.with_nodes(extra), root.root).encode())
        print(arguments.out)
        return 0
    part = image_search.lineage(graph, arguments.ref, arguments.action)
    if arguments.json:
        print(json.dumps(part.to_json(), ensure_ascii=False, indent=2))
    else:
        print(tree.render(part), end="")
    return 0
