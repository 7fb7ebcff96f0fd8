"""`altdiffusion prompt-set NAME [SOURCE] --out FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.evaluation.prompt_sets.case_rows import CaseRow

NAMES = ("mc18", "xtd10", "xm3600", "wit", "pairs")


def register(verbs: Verbs) -> None:
    """Add `prompt-set`."""
    parser = verbs.add_parser("prompt-set", help="write a set of prompts with English texts as a cases file")
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"{', '.join(NAMES)} (MG-18: pairs)")
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="file or folder of the published set")
    parser.add_argument("--out", required=True, metavar="FILE", help="the cases file to write, JSON lines")
    parser.add_argument("--language", metavar="CODE", help="language of the translations, for pairs")
    parser.set_defaults(run=write_set)


def write_set(arguments: argparse.Namespace) -> int:
    """Write the cases file and print its rows by language.

    Raises:
        AltDiffusionError: the source is missing or unusable.
    """
    from altdiffusion.evaluation.prompt_sets.case_rows import write_cases

    counts = write_cases(_rows(arguments.name, arguments.source, arguments.language), arguments.out)
    print(f"{arguments.out}: {sum(counts.values()):,} prompts")
    print(", ".join(f"{code} {count:,}" for code, count in counts.items()))
    return 0


def _rows(name: str, source: str | None, language: str | None) -> Iterator[CaseRow]:
    from altdiffusion.evaluation.prompt_sets import published
    from altdiffusion.evaluation.prompt_sets.mc18 import mc18

    if (language is not None) != (name == "pairs"):
        raise AltDiffusionError(
            "--language", "is for pairs, which need it", "give it with pairs, and leave it out with other sets"
        )
    if (source is None) != (name == "mc18"):
        raise AltDiffusionError(
            f"prompt set {name}", "comes with the package" if name == "mc18" else "needs its published file or folder",
            "leave SOURCE out" if name == "mc18" else "give SOURCE",
        )  # fmt: skip
    if source is None:
        return mc18()
    if name == "pairs":
        return published.pairs(source, str(language))
    return {"xtd10": published.xtd10, "xm3600": published.xm3600, "wit": published.wit}[name](source)
