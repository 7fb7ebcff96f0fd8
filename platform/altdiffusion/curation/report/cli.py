"""`altdiffusion dataset report`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.report.write_report import write_report
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake


def register(actions: Any) -> None:
    """Adds `report` to the actions of `dataset` (`actions`: what its ArgumentParser.add_subparsers returned)."""
    text = "one HTML page of what a curation read, kept and dropped"
    parser = actions.add_parser("report", help=text, description=text)
    parser.add_argument(
        "name", metavar="NAME[@DIGEST]", help="a dataset of pictures; without digest, its newest version"
    )
    default = os.environ.get("ALTDIFFUSION_LAKE")
    parser.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="where to write (default %(default)s)")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the dataset's name)")
    parser.add_argument("--scores", metavar="NAME[@DIGEST]", help="dataset of scores of these pictures")
    shown = ReportConfig()
    parser.add_argument(
        "--pictures", type=int, default=shown.pictures, metavar="N", help="shown a language (default %(default)s)"
    )
    parser.add_argument(
        "--sample-rows",
        type=int,
        default=shown.sample_rows,
        metavar="N",
        help="rows read a question (default %(default)s)",
    )
    parser.set_defaults(run=cmd_report)


def cmd_report(arguments: argparse.Namespace) -> int:
    """Runs a parsed `dataset report` command; prints where the page is.

    Raises:
        AltDiffusionError: no such version, not one of images, or one of its files is damaged.
    """
    try:
        config = ReportConfig(pictures=arguments.pictures, sample_rows=arguments.sample_rows)
    except ValueError as error:
        raise AltDiffusionError("dataset report", f"cannot be made so ({error})", "change the option") from error
    lake = Lake(arguments.lake)
    scores = lake.version(arguments.scores) if arguments.scores else None
    images = lake.version(arguments.name)
    print(write_report(lake, images, arguments.out, name=arguments.title, scores=scores, config=config))
    return 0
