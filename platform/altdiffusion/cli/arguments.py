"""Arguments that several verbs have."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

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


def dataset_argument(parser: argparse.ArgumentParser, what: str = "a dataset") -> None:
    """Add `name`, the version that a verb is about."""
    parser.add_argument("name", metavar="NAME[@DIGEST]", help=f"{what}; without digest, its newest version")


def json_argument(parser: argparse.ArgumentParser, what: str = "JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what}, for programs")
