"""The options of all jobs. `--help` needs nothing else: it prints before a job imports what it works with."""

from __future__ import annotations

import argparse
import sys


def job_parser(name: str, summary: str | None) -> argparse.ArgumentParser:
    """Return the parser of a job's command line.

    Args:
        summary: text of `--help`: the docstring of the job's module.
    """
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=summary)
    parser.add_argument("--config", metavar="FILE", help="YAML, see jobs/configs/")
    parser.add_argument("--explain", metavar="KEY", help="print what a key means, such as train.optimizer.lr, and end")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, change nothing")
    parser.add_argument("--remote", action="store_true", help="with --dry-run: also look at inputs on other machines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. download.threads=32")
    return parser


def show_help(name: str, summary: str | None) -> None:
    """Print the help and end, if it is asked for. A job calls this before its imports, which take seconds."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        job_parser(name, summary).print_help()
        raise SystemExit(0)
