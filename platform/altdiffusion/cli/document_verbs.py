"""`altdiffusion dataset card`, `altdiffusion summary`, `altdiffusion lineage export` and `altdiffusion sign`."""

from __future__ import annotations

import argparse
import json
import sys

from altdiffusion.cli.arguments import Verbs, dataset_argument, lake_argument


def register(verbs: Verbs, dataset: Verbs, lineage: Verbs) -> None:
    """Add `summary` and `sign`, `card` to the verbs of `dataset`, and `export` to those of `lineage`."""
    _register_card(dataset)


def _register_card(verbs: Verbs) -> None:
    text = "describe one version for catalogues and loaders: Croissant, or the Hugging Face hub's dataset card"
    parser = verbs.add_parser("card", help=text, description=text)
    dataset_argument(parser)
    parser.add_argument("--format", choices=("croissant", "huggingface"), required=True)
    lake_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="file to write (default: print it)")
    parser.add_argument("--licence", metavar="NAME|URL", help="licence of the dataset, like cc-by-4.0, or its address")
    parser.add_argument("--url", metavar="URL", help="page where the dataset is published")
    parser.add_argument("--creator", metavar="NAME", help="organisation that made the dataset")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="date of publication")
    parser.add_argument("--contact", metavar="TEXT", help="where to ask for a takedown")
    parser.set_defaults(run=write_card)


def write_card(arguments: argparse.Namespace) -> int:
    """Write or print the card of a version; what only people can state and nobody stated is named.

    Raises:
        AltDiffusionError: there is no such version, a manifest that it was made from is damaged, or an option has
            another form.
    """
    from altdiffusion.documents import croissant, dataset_card
    from altdiffusion.documents.history import history_of
    from altdiffusion.documents.statements import Statements
    from altdiffusion.storage.dataset import Lake

    stated = Statements(
        licence=arguments.licence,
        url=arguments.url,
        creator=arguments.creator,
        date=arguments.date,
        contact=arguments.contact,
    )
    lake = Lake(arguments.lake)
    version = lake.version(arguments.name)
    history = history_of(lake, [version.ref])
    needed: tuple[str, ...] = dataset_card.EXPECTED
    if arguments.format == "croissant":
        needed = croissant.REQUIRED
        text = json.dumps(croissant.croissant(version, history, stated), ensure_ascii=False, indent=2) + "\n"
    else:
        text = dataset_card.dataset_card(version, history, stated)
    _write(text, arguments.out)
    missing = ", ".join(stated.missing(*needed))
    if missing:
        print(f"not stated, because manifests do not hold it: give {missing}", file=sys.stderr)
    return 0


def _write(text: str, path: str | None) -> None:
    from altdiffusion.storage import files

    if path is None:
        print(text, end="")
    else:
        files.write_atomic(path, text.encode())
        print(path)
