"""Takedown of listed rows: `altdiffusion dataset remove|erase` and `altdiffusion lineage impact`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from altdiffusion.cli import remove_verb
from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument
from altdiffusion.cli.takedown_arguments import (
    LIST,
    PURGE,
    likeness_arguments,
    print_judges,
    print_likeness,
    purge_pages,
    widened_list,
)
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.storage.likeness import Likeness


def register(dataset_verbs: Verbs, lineage_verbs: Verbs) -> None:
    """Add `remove` and `erase` to the verbs of `dataset`, and `impact` to those of `lineage`."""
    remove_verb.register(dataset_verbs)
    parser = dataset_verbs.add_parser(
        "erase", help="delete an old version, and the files that no other version refers to"
    )
    parser.add_argument("name", metavar="NAME@DIGEST", help="a version that is not the head")
    parser.add_argument("--purge", action="store_true", help=PURGE)
    lake_argument(parser)
    parser.set_defaults(run=erase_version)
    parser = lineage_verbs.add_parser("impact", help="what holds the listed rows, and what was made from them")
    lists = parser.add_mutually_exclusive_group(required=True)
    lists.add_argument("--hashes", metavar="FILE", help=LIST)
    lists.add_argument("--urls", metavar="FILE", help="text file of one link per line")
    likeness_arguments(parser)
    json_argument(parser)
    lake_argument(parser)
    parser.set_defaults(run=show_impact)


def erase_version(arguments: argparse.Namespace) -> int:
    """Erase an old version and print how much that freed.

    Raises:
        AltDiffusionError: the version has no digest, is the head, or does not exist.
    """
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.erasure import erase

    lake, text = Lake(arguments.lake), arguments.name
    name, at, _ = text.removeprefix("dataset:").partition("@")
    if not at:
        raise AltDiffusionError(f"version {text}", "has no digest", f"write {text}@DIGEST; `dataset list` shows them")
    version = lake.version(text)
    if version.manifest.kind in ("latents", "parallel"):  # what is trained on: `seen` counts by language for ever
        from altdiffusion.training.order.language_rows import language_rows

        language_rows(version)
    if arguments.purge:
        from altdiffusion.curation.report.purge import Needles

        purge_pages(lake, Needles(), {str(version.ref)})
    erased = erase(lake.dataset(name), version)
    print(f"{version.ref.short}: erased, {erased.files:,} files, {erased.bytes / 1e6:,.1f} MB")
    print_judges(erased.judges)
    return 0


def show_impact(arguments: argparse.Namespace) -> int:
    """Print what holds the listed rows, what was made from them, and the steps that drew them.

    Returns:
        0; 3 if a part of the lake is damaged.

    Raises:
        AltDiffusionError: the lake or the list is not usable.
    """
    from altdiffusion.cli import seen_rows
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage.dataset import Lake

    wanted = takedown.read_list(arguments.hashes) if arguments.hashes else takedown.read_urls(arguments.urls)
    graph = graphs.scan(arguments.lake)
    lake = Lake(arguments.lake)
    wanted, holdings, likeness = widened_list(arguments, lake, wanted, indexed=True)
    found = takedown.impact_of(lake, wanted, holdings, graph)
    draws = seen_rows.draws_of(lake.uri, found, takedown.numbers_of(lake, wanted, holdings))
    if arguments.json:
        value = found.to_json()
        for made in value["made"]:
            made |= seen_rows.to_json(draws.get(made["ref"]))
        print(
            json.dumps(
                {"list_sha256": wanted.sha256, **value, **_likeness_json(likeness)}, ensure_ascii=False, indent=2
            )
        )
    else:
        print(impacts.render(found, seen_rows.notes(draws)), end="")
        print_likeness(likeness)
    damaged = found.damaged or graph.damaged or holdings.damaged or holdings.unreadable
    return 3 if damaged or seen_rows.is_damaged(draws) else 0


def _likeness_json(likeness: Likeness) -> dict[str, int]:
    return {"other_rows_of_same_bytes": likeness.same_bytes, "other_rows_alike": likeness.alike}
