"""`altdiffusion lineage up|down|page|rebuild|flush`."""

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
    "an image (its SHA-256 or its file), or a row (its link, or row:ID)"
)


def register(verbs: Verbs) -> None:
    """Add `up`, `down`, `page`, `rebuild` and `flush` to the verbs of `lineage`."""
    for action, text in (
        ("up", "show what a dataset, checkpoint, image or row was made from, back to the source"),
        ("down", "show what was made from a dataset, checkpoint, image or row"),
    ):
        parser = verbs.add_parser(action, help=text)
        parser.add_argument("ref", metavar="REF", help=_REF)
        lake_argument(parser, required=action == "down")
        json_argument(parser, "nodes and edges as JSON")
        parser.set_defaults(run=show_direction)
    parser = verbs.add_parser("page", help="write both directions, or the whole lake, as one HTML page")
    parser.add_argument("ref", metavar="REF", nargs="?", help=f"{_REF}; without it, the whole lake")
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
    text = "ship to MLflow what ended jobs have logged and MLflow did not accept"
    parser = verbs.add_parser(
        "flush",
        help=text,
        description=f"{text}. Exit status: 0 nothing is left, 1 something is left (and named), 3 a part of the lake is "
        "damaged.",
    )
    lake_argument(parser)
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow of the jobs that did not log into the lake")
    parser.add_argument("--dry-run", action="store_true", help="list what waits; ship nothing")
    parser.set_defaults(run=flush_spools)


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
    """Write the lineage of a thing in both directions, or of the whole lake, as one HTML page; print where it is.

    Raises:
        AltDiffusionError: the lake or the reference is not usable.
    """
    from pathlib import Path

    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import image_search, lineage_page
    from altdiffusion.lineage.shown import reports_of
    from altdiffusion.storage import files

    graph = graphs.scan(arguments.lake)
    pages = {
        ref: Path(files.local_path(uri)).absolute().as_uri()
        for ref, uri in reports_of(arguments.lake, set(graph.nodes) if files.is_local(arguments.lake) else set())
    }
    if arguments.ref is None:
        text = lineage_page.render_lake(graph, pages)
    else:
        root = image_search.lineage(graph, arguments.ref, "up")
        extra = [node for ref, node in root.nodes.items() if ref not in graph.nodes]
        text = lineage_page.render(graph.with_nodes(extra), root.root, pages)
    files.write_atomic(arguments.out, text.encode())
    print(arguments.out)
    return report_damaged(graph.damaged)


def flush_spools(arguments: argparse.Namespace) -> int:
    """Ship what ended jobs of a lake have left, and print it; with --dry-run, only print it.

    Returns:
        0; 1 if something is left that was to be shipped; 3 if a part of the lake could not be read.

    Raises:
        AltDiffusionError: the lake is not usable.
    """
    import sys

    from altdiffusion.lineage.spools import flush, spools
    from altdiffusion.storage import files

    if files.is_local(arguments.lake) and not os.path.isdir(files.local_path(arguments.lake)):
        raise AltDiffusionError(f"lake {arguments.lake}", "is not a folder", "correct --lake")
    damaged: list[AltDiffusionError] = []
    found = spools(arguments.lake, damaged)
    for spool in found:
        if arguments.dry_run or not spool.ended:
            print(f"{spool}{'' if spool.ended else ' (ships by itself)'}")
    left = 0
    for spool, error in (
        ()
        if arguments.dry_run
        else flush(arguments.lake, [spool for spool in found if spool.ended], arguments.tracking_uri)
    ):
        if error is None:
            print(f"shipped: {spool}")
        else:
            left += 1
            print(f"left: {spool}\n  {error}", file=sys.stderr)
    if not found:
        print("nothing waits")
    return report_damaged(tuple(damaged)) or (1 if left else 0)


def rebuild_mlflow(arguments: argparse.Namespace) -> int:
    """Fill an empty MLflow from a lake, and print what was written.

    Raises:
        AltDiffusionError: the lake or MLflow is not usable.
    """
    from altdiffusion.lineage.rebuild import rebuild

    rebuilt = rebuild(arguments.lake, arguments.tracking_uri, arguments.experiment, manifests=arguments.manifests)
    print(rebuilt)
    return report_damaged(rebuilt.damaged)
