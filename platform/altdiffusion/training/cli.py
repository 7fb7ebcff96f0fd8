"""`altdiffusion seen CHECKPOINT`; the commands on model folders are in training.exports.cli."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.exports import cli as export_cli

if TYPE_CHECKING:
    from altdiffusion.training.seen import Seen

_NAME = re.compile(r"(?:checkpoint:)?(?P<run>[^@/]+)(?:/step-(?P<step>\d+))?(?:@[0-9a-f]+)?")


def register(subparsers: Any) -> None:
    """Adds this package's commands to the command line (`subparsers`: what ArgumentParser.add_subparsers returned)."""
    one = subparsers.add_parser("seen", help="count or list exactly the samples that a checkpoint has seen")
    one.add_argument("checkpoint", metavar="CHECKPOINT", help="a run (its newest checkpoint), or run/step-NNNNNNNN")
    default = os.environ.get("ALTDIFFUSION_LAKE")
    one.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )
    one.add_argument("--out", metavar="FILE", help="write every sample with the number of times it was seen (Parquet)")
    one.add_argument("--json", action="store_true", help="the counts, for programs")
    one.set_defaults(run=cmd_seen)
    export_cli.register(subparsers)


def checkpoint_name(text: str) -> tuple[str, int | None]:
    """(run, step or None for the newest) of what a person typed.

    Raises:
        AltDiffusionError: it is no name of a checkpoint.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise AltDiffusionError(f"checkpoint {text!r}", "is no name of one", "write a run, or run/step-00001000")
    return match["run"], int(match["step"]) if match["step"] else None


def cmd_seen(arguments: argparse.Namespace) -> int:
    """Runs a parsed `seen` command.

    Raises:
        AltDiffusionError: no such checkpoint, or the file cannot be written.
    """
    from altdiffusion.training.seen import seen  # with torch, which other commands need not wait for

    parts = seen(arguments.lake, *checkpoint_name(arguments.checkpoint))
    if arguments.out:
        _write(parts, arguments.out)
    facts = [_facts(part) for part in parts]
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return 0
    for fact in facts:
        print(
            f"{fact['run']} to step {fact['steps']:,}: {fact['samples']:,} samples of {fact['dataset']}, "
            f"{fact['distinct']:,} of {fact['rows']:,} rows ({fact['epochs']:.4g} epochs)"
        )
        print("  by language: " + ", ".join(f"{code} {count:,}" for code, count in fact["by_language"].items()))
    whole: Counter[str] = Counter()
    for fact in facts:
        whole.update(fact["by_language"])
    if len(facts) > 1:
        print("in all: " + ", ".join(f"{code} {count:,}" for code, count in sorted(whole.items())))
    if arguments.out:
        print(arguments.out)
    return 0


def _facts(part: Seen) -> dict[str, Any]:
    return {
        "run": part.run,
        "steps": part.steps,
        "dataset": part.version.ref.short,
        "samples": part.samples,
        "distinct": part.distinct,
        "rows": part.version.rows,
        "epochs": part.samples / part.version.rows,
        "by_language": part.by_language(),
    }


def _write(parts: list[Seen], path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from altdiffusion.training.seen import SEEN

    try:
        with pa.OSFile(path, "wb") as sink, pq.ParquetWriter(sink, SEEN) as writer:
            for part in parts:
                for table in part.tables():
                    writer.write_table(table)
    except OSError as error:
        raise AltDiffusionError(f"file {path}", f"cannot be written ({error})", "choose another path") from error
