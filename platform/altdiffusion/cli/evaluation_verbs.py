"""`altdiffusion evaluation page`: the figures of an evaluation that a lake keeps."""

from __future__ import annotations

import argparse

from altdiffusion.cli.arguments import Verbs, lake_argument


def register(verbs: Verbs) -> None:
    """Add `page` to the verbs of `evaluation`."""
    text = "write figures, tables and protocol of an evaluation as one page, and the figures as SVG files"
    parser = verbs.add_parser("page", help=text, description=text)
    parser.add_argument("name", metavar="NAME", help="an evaluation: the name of the job that made it")
    lake_argument(parser)
    parser.add_argument("--out", default="evaluation.html", metavar="FILE", help="file to write (default %(default)s)")
    parser.set_defaults(run=write_page)


def write_page(arguments: argparse.Namespace) -> int:
    """Write the page and print the paths of all files.

    Raises:
        AltDiffusionError: there is no such evaluation, its file is damaged, or the page cannot be written.
    """
    from altdiffusion.evaluation.figures.write import write_page
    from altdiffusion.storage import files

    files.check_local_output(f"page {arguments.out}", arguments.out)
    print("\n".join(write_page(arguments.lake, arguments.name, arguments.out)))
    return 0
