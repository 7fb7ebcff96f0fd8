"""The `altdiffusion` command: look at a lake from the terminal. Jobs are `python -m jobs.NAME`."""

from __future__ import annotations

import argparse
import sys

import altdiffusion
from altdiffusion.errors import AltDiffusionError


def parser() -> argparse.ArgumentParser:
    """All subcommands; each package that has some registers its own."""
    from altdiffusion.lineage import cli as lineage_cli
    from altdiffusion.storage import cli as storage_cli

    top = argparse.ArgumentParser(prog="altdiffusion", description=__doc__)
    top.add_argument("--version", action="version", version=f"altdiffusion {altdiffusion.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    storage_cli.register(commands)
    lineage_cli.register(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 2 for what the user can mend."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `altdiffusion lineage up ... | head`
        return 0


if __name__ == "__main__":
    sys.exit(main())
