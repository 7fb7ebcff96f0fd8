"""`altdiffusion lineage up|down|page|rebuild`."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.lineage.graph import Graph

_REF = (
    "kind:name@digest, name, name@prefix, a run's name (its newest checkpoint), 8 or more digits of a digest, "
    "or an image: its SHA-256 or its file"
)


def register(verbs: Verbs) -> None:
    """Add `up`, `down`, `page` and `rebuild` to the verbs of `lineage`."""
    for action, text in (
        ("up", "show what a dataset, checkpoint or image was made from, back to the source"),
        ("down", "show what was made from a dataset, checkpoint or image"),
    ):
        parser = verbs.add_parser(action, help=text)
        parser.add_argument("ref", metavar="REF", help=_REF)
        lake_argument(parser, required=action == "down")
        json_argument(parser, "nodes and edges as JSON")
        parser.set_defaults(run=show_direction)
    parser = verbs.add_parser("page", help="write both directions as one HTML page")
    parser.add_argument("ref", metavar="REF", help=_REF)
    lake_argument(parser)
    parser.add_argument("--out", default="lineage.html", metavar="FILE", help="file to write (default %(default)s)")
    parser.set_defaults(run=write_page)
    parser = verbs.add_parser("rebuild", help="refill an empty MLflow from a lake")
    lake_argument(parser)
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: SQLite in the lake)")
    parser.add_argument("--experiment", default="altdiffusion", help="MLflow experiment (default %(default)s)")
    parser.add_argument(
        "--manifests", action="store_true", help="also add a run for each version and checkpoint that no job has logged"
    )
    parser.set_defaults(run=rebuild_mlflow)


def show_direction(arguments: argparse.Namespace) -> int:
    """Print what a thing was made from (`up`), or what was made from it (`down`).

    Returns:
        0; 1 for an image file whose origin is unknown or contradicted; 3 if a part of the lake could not be read.

    Raises:
        AltDiffusionError: the lake or the reference is not usable.
    """
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import image_search, tree

    is_file = arguments.action == "up" and os.path.isfile(arguments.ref)
    if arguments.lake is None and not is_file:
        raise AltDiffusionError(
            f"reference {arguments.ref!r}",
            "is not a file here, and anything else is looked up in a lake",
            "give --lake (or set ALTDIFFUSION_LAKE), or the path of an image file",
        )
    graph = graphs.scan(arguments.lake) if arguments.lake is not None else None
    if is_file and (graph is None or not graph.find(arguments.ref)):
        return _show_file(arguments, graph)
    assert graph is not None
    part = image_search.lineage(graph, arguments.ref, arguments.action)
    if arguments.json:
        print(json.dumps(part.to_json(), ensure_ascii=False, indent=2))
    else:
        print(tree.render(part), end="")
    return report_damaged(graph.damaged)


def _show_file(arguments: argparse.Namespace, graph: Graph | None) -> int:
    from altdiffusion.lineage import file_search, file_text

    origin = file_search.trace(arguments.ref, graph)
    if arguments.json:
        print(json.dumps(file_text.to_json(origin), indent=2))  # ASCII: a terminal is not controlled by a file
    else:
        print(file_text.to_text(origin), end="")
    status = report_damaged(graph.damaged) if graph is not None else 0
    return status if origin.is_explained else 1


def write_page(arguments: argparse.Namespace) -> int:
    """Write the lineage of a thing in both directions as one HTML page, and print where it is.

    Raises:
        AltDiffusionError: the lake or the reference is not usable.
    """
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import image_search, lineage_page
    from altdiffusion.storage import files

    graph = graphs.scan(arguments.lake)
    root = image_search.lineage(graph, arguments.ref, "up")
    extra = [node for ref, node in root.nodes.items() if ref not in graph.nodes]
    files.write_atomic(arguments.out, lineage_page.render(graph.with_nodes(extra), root.root).encode())
    print(arguments.out)
    return report_damaged(graph.damaged)


def rebuild_mlflow(arguments: argparse.Namespace) -> int:
    """Fill an empty MLflow from a lake, and print what was written.

    Raises:
        AltDiffusionError: the lake or MLflow is not usable.
    """
    from altdiffusion.lineage.rebuild import rebuild

    rebuilt = rebuild(arguments.lake, arguments.tracking_uri, arguments.experiment, manifests=arguments.manifests)
    print(rebuilt)
    return report_damaged(rebuilt.damaged)
