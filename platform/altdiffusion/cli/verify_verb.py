"""`altdiffusion dataset verify`: the files of a version, and what makes damaged ones again."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, dataset_argument, lake_argument

if TYPE_CHECKING:
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.verification import Check


def register(verbs: Verbs) -> None:
    """Add `verify` to the verbs of `dataset`."""
    parser = verbs.add_parser(
        "verify", help="read every file of a version and compare it with its manifest; status 1 if one is damaged"
    )
    dataset_argument(parser)
    lake_argument(parser)
    parser.add_argument(
        "--forget",
        action="store_true",
        help="remove the damaged files, so that their job makes them again, and nothing else",
    )
    parser.set_defaults(run=verify_version)


def verify_version(arguments: argparse.Namespace) -> int:
    """Verify a version, print its damages, and return 1 if there are any.

    Raises:
        AltDiffusionError: there is no such dataset or version.
    """
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.verification import forget, verify

    lake, text = Lake(arguments.lake), arguments.name
    name, _, prefix = text.removeprefix("dataset:").partition("@")
    check = verify(lake.dataset(name), prefix)
    if not check.damages:
        assert check.version is not None
        version = check.version
        count = len(version.shards) + len(version.rejects)
        print(f"{version.ref.short}: {count:,} files, {version.rows:,} rows, all as in the manifest")
        return 0
    for damage in check.damages:
        print(damage, file=sys.stderr)
    bad = f"{len(check.damages):,} damaged or missing"
    if arguments.forget:
        forget(check.damages)
        print(f"{text}: {bad}, now removed. Next: run {_next_command(lake, name, check)}")
    else:
        command = f"altdiffusion dataset verify {text} --forget --lake {lake.uri}"
        following = _next_command(lake, name, check)
        print(f"error: {text}: {bad}. Remedy: run `{command}`, then run {following}", file=sys.stderr)
    return 1


def _next_command(lake: Lake, name: str, check: Check) -> str:
    """Return the description of what to run to make missing files of this version again."""
    from altdiffusion.storage.removal import REASON
    from altdiffusion.storage.verification import finished_jobs

    version = check.version
    if version is not None and REASON in version.manifest.config:
        parent = version.manifest.parent_refs[0]
        listed = str(version.manifest.config[REASON])[:12]
        return (
            f"`altdiffusion dataset remove {name}@{parent.digest[:12]} --hashes FILE --lake {lake.uri}` with the list "
            f"of sha256 {listed}, after the job that made {parent.short} if a file of that version is missing too"
        )
    jobs = finished_jobs(lake, version) if version is not None else []
    named = f" ({', '.join(jobs)})" if jobs else ""
    return f"the job that made it{named} again: it makes only what is missing"
