"""The `altdiffusion` command: look at a lake from the terminal. Jobs are `python -m jobs.NAME`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import NoReturn

import altdiffusion
from altdiffusion.credentials import guard_outputs, holds_credential
from altdiffusion.errors import AltDiffusionError


def parser() -> argparse.ArgumentParser:
    """All subcommands; each package that has some registers its own, curation among those of the other two."""
    from altdiffusion.curation import cli as curation_cli
    from altdiffusion.curation.report import cli as report_cli
    from altdiffusion.lineage import cli as lineage_cli
    from altdiffusion.storage import cli as storage_cli
    from altdiffusion.training import cli as training_cli

    top = argparse.ArgumentParser(prog="altdiffusion", description=__doc__)
    top.add_argument("--version", action="version", version=f"altdiffusion {altdiffusion.__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    datasets = storage_cli.register(commands)
    curation_cli.register(datasets, lineage_cli.register(commands))
    report_cli.register(datasets)
    training_cli.register(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; 2 for what the user can fix."""
    guard_outputs()
    arguments = parser().parse_args(argv)
    try:
        _refuse_credentials(arguments)
        return int(arguments.run(arguments) or 0)
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `altdiffusion lineage up ... | head`
        return 0


def _refuse_credentials(arguments: argparse.Namespace) -> None:
    """A command line is seen by everyone on the machine, and addresses are printed and stored."""
    for name, value in vars(arguments).items():
        if isinstance(value, str) and holds_credential(value):
            raise AltDiffusionError(
                f"--{name.replace('_', '-')} {value}",
                "holds a credential, which would be shown and stored",
                "leave it out and set the service's own variables (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD); in "
                "--tracking-uri '${env:NAME}' or '${file:PATH}' may stand in its place",
            )


def run() -> NoReturn:
    """The installed command: `main`, then the end of the process without the interpreter's teardown, in which threads
    of native libraries have been seen to abort a command that had done its work."""
    status = main()
    with contextlib.suppress(BrokenPipeError):  # `altdiffusion lineage up ... | head`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
