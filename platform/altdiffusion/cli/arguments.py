"""Arguments that several verbs have."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

from altdiffusion.errors import AltDiffusionError

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The verbs of a command, to which a module adds its own: what ArgumentParser.add_subparsers returns."""


def lake_argument(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--lake`, which is required where ALTDIFFUSION_LAKE is not set, unless a verb can work without a lake."""
    default = os.environ.get("ALTDIFFUSION_LAKE")
    parser.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=required and default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )


def own_lake_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--lake` for verbs that can work without a team's lake: in the folder of this user's data."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    parser.add_argument(
        "--lake",
        metavar="URI",
        default=os.environ.get("ALTDIFFUSION_LAKE") or os.path.join(data, "altdiffusion", "lake"),
        help="where images are recorded (default: ALTDIFFUSION_LAKE if set, else a lake in your data folder)",
    )
    parser.set_defaults(makes_lake=True)


def dataset_argument(parser: argparse.ArgumentParser, what: str = "a dataset") -> None:
    """Add `name`, the version that a verb is about."""
    parser.add_argument("name", metavar="NAME[@DIGEST]", help=f"{what}; without digest, its newest version")


def report_damaged(damaged: Sequence[AltDiffusionError]) -> int:
    """Print what of a lake could not be read, and return the status: 3 if there is any, else 0."""
    for error in damaged:
        print(f"not answered for: {error}", file=sys.stderr)
    return 3 if damaged else 0


def json_argument(parser: argparse.ArgumentParser, what: str = "JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what}, for programs")
