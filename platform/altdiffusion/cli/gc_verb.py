"""`altdiffusion gc`: delete what killed jobs have left behind."""

from __future__ import annotations

import argparse
import re

from altdiffusion.cli.arguments import Verbs, lake_argument, report_damaged

_AGE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN = 20


def register(verbs: Verbs) -> None:
    """Add `gc`."""
    parser = verbs.add_parser("gc", help="list, or with --yes delete, old files of datasets that no manifest names")
    lake_argument(parser)
    parser.add_argument(
        "--older-than", type=_age, default="1d", metavar="AGE",
        help="only files that old, and of unfinished units only where a dataset has not changed that long: "
        "90m, 12h, 3d (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="delete them; without it they are only listed")
    parser.set_defaults(run=collect)


def _age(text: str) -> float:
    """Return seconds."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; write a number and s, m, h or d, like 12h")
    return float(match["number"]) * _SECONDS[match["unit"]]


def collect(arguments: argparse.Namespace) -> int:
    """List or delete the garbage of a lake; return 3 if a dataset could not be looked at.

    Raises:
        AltDiffusionError: there is no such lake.
    """
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.garbage import find_garbage

    found, wrong = find_garbage(Lake(arguments.lake), arguments.older_than)
    for garbage in found:
        print(f"{garbage.dataset.name}: {len(garbage.files):,} files, {garbage.bytes / 1e6:,.1f} MB")
        for file in garbage.files[:_SHOWN]:
            print(f"  {file.uri}")
        if len(garbage.files) > _SHOWN:
            print(f"  and {len(garbage.files) - _SHOWN:,} more")
        if arguments.yes:
            garbage.remove()
    count, size = sum(len(one.files) for one in found), sum(one.bytes for one in found) / 1e6
    if not found:
        print(f"{arguments.lake}: nothing to delete")
    elif arguments.yes:
        print(f"deleted {count:,} files, {size:,.1f} MB")
    else:
        print(f"{count:,} files, {size:,.1f} MB; nothing was deleted. To delete them, add --yes")
    return report_damaged(wrong)
