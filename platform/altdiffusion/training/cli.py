"""`altdiffusion seen CHECKPOINT`, `altdiffusion export RUN` and `altdiffusion convert SOURCE TARGET`."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.training.seen import Seen

_NAME = re.compile(r"(?:checkpoint:)?(?P<run>[^@/]+)(?:/step-(?P<step>\d+))?(?:@[0-9a-f]+)?")


def register(subparsers: Any) -> None:
    """Add this package's commands to the command line (`subparsers`: what ArgumentParser.add_subparsers returned)."""
    one = subparsers.add_parser("seen", help="count or list exactly the samples that a checkpoint has seen")
    one.add_argument("checkpoint", metavar="CHECKPOINT", help="a run (its newest checkpoint), or run/step-NNNNNNNN")
    _add_lake(one)
    one.add_argument("--out", metavar="FILE", help="write every sample with the number of times it was seen (Parquet)")
    one.add_argument("--json", action="store_true", help="the counts, for programs")
    one.set_defaults(run=cmd_seen)
    one = subparsers.add_parser("export", help="write a checkpoint as a diffusers folder with its model card")
    one.add_argument("checkpoint", metavar="RUN", help="a run (its newest checkpoint), or run/step-NNNNNNNN")
    one.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step")
    one.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averages (the default) or as trained")
    _add_lake(one)
    one.set_defaults(run=cmd_export)
    one = subparsers.add_parser("convert", help="make a published text encoder one that stock transformers reads")
    one.add_argument(
        "source", metavar="SOURCE", help="folder of AltDiffusion or AltCLIP as published: m18, m9, the first"
    )
    one.add_argument("target", metavar="TARGET", help="folder to write; it must not exist")
    one.set_defaults(run=cmd_convert)


def _add_lake(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("ALTDIFFUSION_LAKE")
    parser.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )


def checkpoint_name(text: str) -> tuple[str, int | None]:
    """Return (run, step or None for the newest) of what a person typed.

    Raises:
        AltDiffusionError: it is not a name of a checkpoint.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise AltDiffusionError(f"checkpoint {text!r}", "is not a name of one", "write a run, or run/step-00001000")
    return match["run"], int(match["step"]) if match["step"] else None


def cmd_seen(arguments: argparse.Namespace) -> int:
    """Run a parsed `seen` command.

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
        print("total: " + ", ".join(f"{code} {count:,}" for code, count in sorted(whole.items())))
    if arguments.out:
        print(arguments.out)
    return 0


def cmd_export(arguments: argparse.Namespace) -> int:
    """Run a parsed `export` command: write the folder and print its place.

    Raises:
        AltDiffusionError: no such run or checkpoint.
    """
    from altdiffusion.training.exports.export import export_checkpoint

    run, step = checkpoint_name(arguments.checkpoint)
    if step is not None and arguments.step not in (None, step):
        raise AltDiffusionError(
            f"checkpoint {arguments.checkpoint!r}", f"is not of step {arguments.step}", "give the step once"
        )
    print(
        export_checkpoint(arguments.lake, run, step=arguments.step if step is None else step, weights=arguments.weights)
    )
    return 0


def cmd_convert(arguments: argparse.Namespace) -> int:
    """Run a parsed `convert` command: write the folder.

    Raises:
        AltDiffusionError: the source is not a published encoder, or the target is there.
    """
    from altdiffusion.diffusion.convert import convert_folder, is_published, local_source
    from altdiffusion.diffusion.folder import content_digest, model_ref, publish
    from altdiffusion.diffusion.hub import is_hub_id
    from altdiffusion.diffusion.licence import licence_of
    from altdiffusion.storage import files

    source, target = arguments.source.rstrip("/"), arguments.target.rstrip("/")
    if is_hub_id(source):
        raise AltDiffusionError(
            f"source {source}",
            "is a hub model, and this command takes a folder",
            "name it in start.text_encoder, where it is fetched and converted, or download it first",
        )
    digest = content_digest(source)
    if not is_published(source):
        raise AltDiffusionError(
            f"folder {source}",
            "is not a published text encoder",
            "give a folder of AltDiffusion or AltCLIP as published; an export of this platform needs no conversion",
        )
    if files.exists(target):
        raise AltDiffusionError(f"folder {target}", "is there already", "choose another one, or remove it")
    origin = str(model_ref(source, digest))
    rest: list[str] = []
    with local_source(source) as local:
        publish(
            target,
            lambda staging: rest.append(convert_folder(local, staging)),
            {"converted_from": origin, "licence": licence_of(source), "parents": [origin]},
        )
    print(target)
    if rest[0]:
        print(f"not converted: {rest[0]}")
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
