"""`altdiffusion seen CHECKPOINT` and `altdiffusion export RUN`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.training.seen import Seen

_NAME = re.compile(r"(?:checkpoint:)?(?P<run>[^@/]+)(?:/step-(?P<step>\d+))?(?:@(?P<digest>[0-9a-f]+))?")
_CHECKPOINT = "a run (its newest checkpoint), or run/step-NNNNNNNN"


def checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add `checkpoint`, which `checkpoint_name` reads."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)


def register(verbs: Verbs) -> None:
    """Add `seen` and `export`."""
    parser = verbs.add_parser("seen", help="count or list exactly the samples that a checkpoint has seen")
    checkpoint_argument(parser)
    lake_argument(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="write every sample with the number of times it was seen (Parquet)"
    )
    parser.add_argument(
        "--hashes",
        metavar="FILE",
        help="only the rows that a text file lists, with the first step that drew each: hash:<sample_id>, "
        "sha256:<hex>, url:<link> and domain:<name> lines",
    )
    json_argument(parser, "the counts as JSON")
    parser.set_defaults(run=show_seen)
    parser = verbs.add_parser("export", help="write a checkpoint for diffusers, A1111 or ComfyUI, with its model card")
    parser.add_argument("checkpoint", metavar="RUN", help=_CHECKPOINT)
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="EMA weights (the default), or non-EMA weights"
    )
    parser.add_argument(
        "--format",
        choices=("diffusers", "single-file", "lora-diffusers", "lora-kohya"),
        default="diffusers",
        help="a model folder (the default); one safetensors file as A1111 and ComfyUI read it; or the adapters of a "
        "LoRA run alone, in diffusers' or kohya's layout",
    )
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="type of the weights (default: fp32)")
    lake_argument(parser)
    parser.set_defaults(run=export)


def checkpoint_name(text: str) -> tuple[str, int | None, str]:
    """Return (run, step or None for the newest, beginning of the digest or "") for what a person typed.

    Raises:
        AltDiffusionError: it is not the name of a checkpoint.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise AltDiffusionError(f"checkpoint {text!r}", "is not a name of one", "write a run, or run/step-00001000")
    return match["run"], int(match["step"]) if match["step"] else None, match["digest"] or ""


def show_seen(arguments: argparse.Namespace) -> int:
    """Print the counts of the samples that a checkpoint has seen, and write the samples if asked to.

    Returns:
        0; 3 if a record of a takedown is damaged, or a part of the lake could not be searched for listed rows.

    Raises:
        AltDiffusionError: there is no such checkpoint, or the file cannot be written.
    """
    from altdiffusion.lineage.takedown_record import read_records, rows_taken_from
    from altdiffusion.training.seen import seen, write_seen

    run, step, digest = checkpoint_name(arguments.checkpoint)
    if arguments.hashes:
        from altdiffusion.cli.seen_rows import show_listed

        return show_listed(arguments, run, step, digest)
    parts = seen(arguments.lake, run, step, digest=digest)
    if arguments.out:
        write_seen(parts, arguments.out)
    damaged: list[AltDiffusionError] = []
    records = read_records(arguments.lake, damaged)
    facts = [_facts(part, rows_taken_from(arguments.lake, records, str(part.version.ref), damaged)) for part in parts]
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return report_damaged(damaged)
    for fact in facts:
        print(
            f"{fact['run']} to step {fact['steps']:,}: {fact['samples']:,} samples of {fact['dataset']}, "
            f"{fact['distinct']:,} of {fact['rows']:,} rows ({fact['epochs']:.4g} epochs)"
        )
        print("  by language: " + _counts(fact["by_language"]))
        gone = fact["taken_down"]
        if gone["rows"]:
            print(
                f"  of {gone['rows']:,} rows that were taken down it has seen {gone['distinct']:,}, "
                f"{gone['samples']:,} times"
            )
        if fact["erased"]:
            print("  the rows of this dataset were erased; the counts are exact")
    if len(facts) > 1:
        whole = sum((Counter(fact["by_language"]) for fact in facts), Counter[str]())
        print("in all: " + _counts(dict(sorted(whole.items()))))
    if arguments.out:
        print(arguments.out)
    return report_damaged(damaged)


def _facts(part: Seen, taken: list[int]) -> dict[str, Any]:
    taken = [row for row in taken if row < len(part.times)]
    times = part.times[taken]
    return {
        "run": part.run,
        "steps": part.steps,
        "dataset": part.version.ref.short,
        "samples": part.samples,
        "distinct": part.distinct,
        "rows": part.version.rows,
        "epochs": part.samples / part.version.rows,
        "by_language": part.by_language(),
        "taken_down": {"rows": len(taken), "distinct": int((times > 0).sum()), "samples": int(times.sum())},
        "erased": part.is_erased,
    }


def _counts(by_language: dict[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in by_language.items())


def export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint in a format that other programs open, and print where it is.

    Raises:
        AltDiffusionError: there is no such run or checkpoint, or it has no adapters to export.
    """
    from altdiffusion.training.exports.export import export_checkpoint

    run, step, digest = checkpoint_name(arguments.checkpoint)
    if step is not None and arguments.step not in (None, step):
        raise AltDiffusionError(
            f"checkpoint {arguments.checkpoint!r}", f"is not of step {arguments.step}", "give the step once"
        )
    chosen = arguments.step if step is None else step
    print(
        export_checkpoint(
            arguments.lake,
            run,
            step=chosen,
            weights=arguments.weights,
            digest=digest,
            format=arguments.format,
            dtype=arguments.dtype,
            warn=lambda text: print(f"warning: {text}", file=sys.stderr),
        )
    )
    return 0
