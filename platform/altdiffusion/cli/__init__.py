"""The `altdiffusion` command: draw images and look at a lake from the terminal. Jobs are `python -m jobs.NAME`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import NoReturn

import altdiffusion
from altdiffusion.cli import (
    ab_verbs,
    checkpoint_verbs,
    convert_verb,
    dataset_verbs,
    doctor_verb,
    document_verbs,
    evaluation_verbs,
    gc_verb,
    generate_verb,
    image_verbs,
    import_verb,
    lineage_diff,
    lineage_verbs,
    lineage_verify,
    plan_verb,
    play_verb,
    promote_verb,
    prompt_set_verb,
    push_verb,
    sheet_verb,
    submit_verb,
    takedown_verbs,
    ui_verb,
    verify_verb,
)
from altdiffusion.credentials import guard_outputs, holds_credential
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.terminal import naming_paths, print_any_text


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs. A verb imports what it works with only when it runs."""
    top = argparse.ArgumentParser(prog="altdiffusion", description=__doc__)
    top.add_argument("--version", action="version", version=f"altdiffusion {altdiffusion.__version__}")
    verbs = top.add_subparsers(dest="command", required=True)
    dataset = verbs.add_parser(
        "dataset", help="list, show, describe, verify, export, report on, remove from and erase dataset versions"
    )
    dataset_actions = dataset.add_subparsers(
        dest="action", required=True, metavar="list|show|card|verify|export|report|remove|erase"
    )
    lineage = verbs.add_parser("lineage", help="show what a thing was made from, and what was made from it")
    lineage_actions = lineage.add_subparsers(
        dest="action", required=True, metavar="up|down|diff|verify|page|rebuild|export|impact"
    )
    evaluation = verbs.add_parser("evaluation", help="show the figures of an evaluation")
    evaluation_verbs.register(evaluation.add_subparsers(dest="action", required=True, metavar="page"))
    dataset_verbs.register(dataset_actions)
    verify_verb.register(dataset_actions)
    image_verbs.register(dataset_actions)
    lineage_verbs.register(lineage_actions)
    lineage_diff.register(lineage_actions)
    lineage_verify.register(lineage_actions)
    takedown_verbs.register(dataset_actions, lineage_actions)
    checkpoint_verbs.register(verbs)
    convert_verb.register(verbs)
    gc_verb.register(verbs)
    generate_verb.register(verbs)
    import_verb.register(verbs)
    plan_verb.register(verbs)
    play_verb.register(verbs)
    promote_verb.register(verbs)
    ab_verbs.register(verbs)
    prompt_set_verb.register(verbs)
    push_verb.register(verbs)
    doctor_verb.register(verbs)
    document_verbs.register(verbs, dataset_actions, lineage_actions)
    sheet_verb.register(verbs)
    submit_verb.register(verbs)
    ui_verb.register(verbs)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status, which is 2 for what the user can fix."""
    guard_outputs()
    print_any_text()
    arguments = parser().parse_args(argv)
    try:
        _refuse_credentials(arguments)
        _refuse_no_lake(arguments)
        with naming_paths():
            return int(arguments.run(arguments) or 0)
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `altdiffusion lineage up ... | head`
        return 0


def _refuse_credentials(arguments: argparse.Namespace) -> None:
    """Refuse a credential: everyone on the machine sees a command line, and addresses are printed and stored."""
    for name, value in vars(arguments).items():
        if isinstance(value, str) and holds_credential(value):
            raise AltDiffusionError(
                f"--{name.replace('_', '-')} {value}",
                "holds a credential, which would be shown and stored",
                "leave it out and set the service's own variables (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD); "
                "--tracking-uri also takes '${env:NAME}' or '${file:PATH}' in its place",
            )


def _refuse_no_lake(arguments: argparse.Namespace) -> None:
    """Refuse a lake on this machine that is a file or, unless the verb makes one, does not exist."""
    lake = getattr(arguments, "lake", None)
    if lake is None or not files.is_local(lake):
        return
    path = files.local_path(lake)
    if os.path.isfile(path):
        raise AltDiffusionError(f"lake {lake}", "is a file, not a folder", "name the folder that the jobs write to")
    if not os.path.isdir(path) and not getattr(arguments, "makes_lake", False):
        raise AltDiffusionError(
            f"lake {lake}", "does not exist", "name the folder that the jobs write to (`lake` in their configs)"
        )


def run() -> NoReturn:
    """Run `main`, then end the process without the interpreter's teardown.

    Threads of native libraries have been seen to abort a command in the teardown when it had done its work.
    """
    status = main()
    with contextlib.suppress(BrokenPipeError):  # `altdiffusion lineage up ... | head`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
