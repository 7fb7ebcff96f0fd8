"""`altdiffusion dataset verify`: the files of a version, and what makes damaged ones again."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, lake_argument
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.verification import Check


def register(verbs: Verbs) -> None:
    """Add `verify` to the verbs of `dataset`."""
    parser = verbs.add_parser(
        "verify", help="read every file of a version and compare it with its manifest; status 1 if one is damaged"
    )
    parser.add_argument(
        "name", metavar="NAME[@DIGEST]", nargs="?", help="a dataset; without digest, its newest version"
    )
    lake_argument(parser)
    parser.add_argument(
        "--takedowns",
        action="store_true",
        help="instead, read every shard in the lake and prove that none holds a row that was taken down",
    )
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
    if arguments.takedowns:
        return _verify_takedowns(lake, text)
    if text is None:
        raise AltDiffusionError(
            "dataset verify", "names no dataset", "give NAME or NAME@DIGEST, or --takedowns for the whole lake"
        )
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


def _verify_takedowns(lake: Lake, name: str | None) -> int:
    """Print every file that holds a row that was taken down, and return 1 if there is any."""
    from altdiffusion.storage.takedown_proof import prove

    if name is not None:
        raise AltDiffusionError(
            f"dataset verify {name} --takedowns", "names a dataset", "leave the name out: the whole lake is read"
        )
    proof = prove(lake)
    for held in proof.held:
        print(held, file=sys.stderr)
    for judge in proof.judges:
        print(judge, file=sys.stderr)
    for error in proof.unreadable:
        print(f"could not be read: {error}", file=sys.stderr)
    counts = f"{proof.tombstones:,} tombstones, {proof.files:,} files with {proof.rows:,} rows read"
    if proof.is_clean:
        print(f"{lake.uri}: {counts}; none holds a row that was taken down")
        return 0
    print(
        f"error: {lake.uri}: {counts}; {len(proof.held):,} hold rows that were taken down, {len(proof.judges):,} "
        f"judges were or may have been trained on them, {len(proof.unreadable):,} could not be read. Remedy: "
        "`altdiffusion dataset remove` takes rows from the versions that are heads and deletes such judges, "
        "`dataset erase` deletes an older version, and `altdiffusion gc` deletes what no manifest names",
        file=sys.stderr,
    )
    return 1


def _next_command(lake: Lake, name: str, check: Check) -> str:
    """Return the description of what to run to make missing files of this version again."""
    from altdiffusion.storage.cleansing import REASON
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
