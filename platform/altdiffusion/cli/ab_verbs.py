"""`altdiffusion ab A B` and `altdiffusion ab-result FILE...`: blind comparisons of two models by people."""

from __future__ import annotations

import argparse
import json

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument
from altdiffusion.errors import AltDiffusionError


def register(verbs: Verbs) -> None:
    """Add `ab` and `ab-result`."""
    text = "write a page on which people choose between the images of two models, without a sign of which is whose"
    parser = verbs.add_parser("ab", help=text, description=text)
    for name in ("a", "b"):
        parser.add_argument(name, metavar=f"{name.upper()}[@DIGEST]", help="a dataset of generations")
    lake_argument(parser)
    parser.add_argument("--out", metavar="FILE", default="page.html", help="file to write (default %(default)s)")
    parser.add_argument("--pairs", metavar="N", type=int, default=60, help="largest number (default %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of choice, order and sides (default 0)")
    parser.set_defaults(run=write_page)
    text = "print what people answered on a page of `altdiffusion ab`: win rate, ties and agreement"
    parser = verbs.add_parser("ab-result", help=text, description=text)
    parser.add_argument("files", metavar="FILE", nargs="+", help="answers that the page saved, one file per judge")
    lake_argument(parser)
    json_argument(parser, "the result as JSON")
    parser.set_defaults(run=show_result)


def write_page(arguments: argparse.Namespace) -> int:
    """Write the page and print where it is.

    Raises:
        AltDiffusionError: the datasets do not hold different images of the same prompts and seeds.
    """
    from altdiffusion.evaluation.ab_page import write_page
    from altdiffusion.storage import files
    from altdiffusion.storage.dataset import Lake

    if not 1 <= arguments.pairs <= 1000:
        raise AltDiffusionError(f"--pairs {arguments.pairs}", "is not from 1 to 1000", "give e.g. 60")
    files.check_local_output(f"page {arguments.out}", arguments.out)
    lake = Lake(arguments.lake)
    first, second = lake.version(arguments.a), lake.version(arguments.b)
    for version in (first, second):
        if version.manifest.kind != "generations":
            raise AltDiffusionError(
                version.ref.short, f"holds {version.manifest.kind}, not generations", "name what jobs.generate made"
            )
    page = write_page(lake.uri, first, second, arguments.out, count=arguments.pairs, seed=arguments.seed)
    same = f"; {page.same:,} pairs of equal images were left out" if page.same else ""
    print(f"{arguments.out}: page {page.page}, {page.pairs} pairs{same}")
    return 0


def show_result(arguments: argparse.Namespace) -> int:
    """Print the result of a page.

    Raises:
        AltDiffusionError: a file is not of that form, or the page's key is not in the lake.
    """
    from altdiffusion.evaluation.ab_result import analyse

    result = analyse(arguments.lake, arguments.files)
    print(json.dumps(result.to_json(), ensure_ascii=False, indent=2) if arguments.json else "\n".join(result.lines()))
    return 0
