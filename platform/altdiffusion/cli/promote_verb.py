"""`altdiffusion promote CHECKPOINT --to champion`: a better checkpoint takes the place of the present one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from altdiffusion.cli.arguments import Verbs, lake_argument
from altdiffusion.cli.checkpoint_verbs import checkpoint_argument, checkpoint_name
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.margins import ALPHA, MARGIN

if TYPE_CHECKING:
    from altdiffusion.storage.aliases import Alias

REFUSED = 1
"""Exit status where the test refuses the checkpoint."""


def register(verbs: Verbs) -> None:
    """Add `promote`."""
    text = "make a checkpoint the champion, unless a language may have become worse"
    parser = verbs.add_parser(
        "promote",
        help=text,
        description=f"{text}. Exit status: 0 promoted, 1 refused by the test, 2 cannot be decided.",
    )
    checkpoint_argument(parser)
    lake_argument(parser)
    parser.add_argument("--to", metavar="ALIAS", default="champion", help="alias to give (default %(default)s)")
    parser.add_argument(
        "--margin",
        metavar="POINTS",
        type=float,
        default=100 * MARGIN,
        help="percentage points that a language may lose (default %(default)g)",
    )
    parser.add_argument(
        "--alpha", metavar="P", type=float, default=ALPHA, help="level of the test (default %(default)g)"
    )
    parser.add_argument("--evaluation", metavar="NAME", help="evaluation of the checkpoint to use")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: SQLite in the lake, if there is one)")
    parser.add_argument("--dry-run", action="store_true", help="test only; promote nothing")
    parser.set_defaults(run=promote)


def promote(arguments: argparse.Namespace) -> int:
    """Test a checkpoint against the present champion, and give it the alias if it passes.

    Raises:
        AltDiffusionError: it has no export, or the evaluations cannot be compared.
    """
    from altdiffusion.generation.model import resolve_model
    from altdiffusion.generation.settings import ModelConfig
    from altdiffusion.storage.aliases import Alias, read_alias, write_alias

    _check_options(arguments)
    lake, alias = arguments.lake, arguments.to
    run, step, digest = checkpoint_name(arguments.checkpoint)
    model = resolve_model(ModelConfig(run=run, step=step), lake)
    if not model.ref.digest.startswith(digest):
        raise AltDiffusionError(
            f"checkpoint {arguments.checkpoint}",
            f"is not in the lake: {model.ref.name} has the digest {model.ref.digest[:12]}",
            "write that digest, or leave it out",
        )
    named, present = Alias(ref=model.ref, content=model.content), read_alias(lake, alias)
    if present is not None and present.content == model.content:
        print(f"{model.ref.short} is {alias} already")
        return 0
    decision = _first(arguments, named) if present is None else _tested(arguments, named, present)
    if decision is None:
        return REFUSED
    if arguments.dry_run:
        print(f"would be promoted to {alias}; nothing was changed")
        return 0
    write_alias(lake, alias, named, decision)
    _show(lake, arguments.tracking_uri)
    print(f"{model.ref.short} is {alias}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    from altdiffusion.storage.documents import NAME

    for option, value, valid, form in (
        ("--to", arguments.to, bool(NAME.fullmatch(arguments.to)), "a plain name"),
        ("--margin", arguments.margin, 0 < arguments.margin < 100, "above 0 and below 100"),
        ("--alpha", arguments.alpha, 0 < arguments.alpha < 0.5, "above 0 and below 0.5"),
    ):
        if not valid:
            raise AltDiffusionError(f"{option} {value}", f"is not {form}", "correct the option")


def _first(arguments: argparse.Namespace, named: Alias) -> dict[str, Any]:
    """Accept the first checkpoint, and print what its successors will be compared with."""
    from altdiffusion.evaluation.gate import measured

    evaluated = [one.name for one in measured(arguments.lake, named.content)]
    note = f"it was evaluated by {', '.join(evaluated)}" if evaluated else "evaluate it before a successor"
    print(f"there is no {arguments.to} yet, so the first is accepted without a test; {note}")
    return {"first": True}


def _tested(arguments: argparse.Namespace, named: Alias, present: Alias) -> dict[str, Any] | None:
    """Print the test by language; return it as a decision, or None where it refuses the checkpoint."""
    from altdiffusion.evaluation.gate import decide

    margin, alpha = arguments.margin / 100, arguments.alpha
    found = decide(
        arguments.lake, named.content, present.content, margin=margin, alpha=alpha, name=arguments.evaluation
    )
    print(f"{named.ref.short} against {present.ref.short}, evaluation {found.candidate.name}:")
    print("\n".join(f"  {line}" for line in found.lines()))
    if found.refused:
        print(
            f"refused: {', '.join(found.refused)} may be worse by {arguments.margin:g} points or more "
            f"(Holm's p above {alpha:g})",
            file=sys.stderr,
        )
        return None
    return {**found.to_json(), "replaced": str(present.ref)}


def _show(lake: str, tracking_uri: str | None) -> None:
    """Show the alias in MLflow; an outage there does not undo the promotion, which the lake holds."""
    from altdiffusion.lineage.alias_view import show_aliases_in

    try:
        show_aliases_in(lake, tracking_uri)
    except AltDiffusionError as error:
        print(f"warning: MLflow does not show it yet ({error}); run `altdiffusion lineage rebuild`", file=sys.stderr)
