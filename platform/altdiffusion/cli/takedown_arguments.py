"""Arguments and steps that the verbs of takedowns share: the list, how it is widened, and pages made again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altdiffusion.curation.links.takedown import TakedownList
    from altdiffusion.curation.report.purge import Needles
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.holdings import Holdings
    from altdiffusion.storage.judges import TaughtJudge
    from altdiffusion.storage.likeness import Likeness

PURGE = "also make reports, artifacts and other pages that show such rows again, without them"
LIST = "text file of hash:<sample_id>, sha256:<hex>, url:<link> and domain:<name> lines, as in a blocklist"


def likeness_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--same-bytes", action="store_true", help="also mean all other rows whose image has the same bytes"
    )
    parser.add_argument(
        "--alike",
        type=int,
        choices=range(17),
        metavar="BITS",
        help="also mean rows whose image looks alike: its perceptual hash differs in at most BITS of 64 (0 to 16)",
    )


def widened_list(
    arguments: argparse.Namespace, lake: Lake, wanted: TakedownList, *, indexed: bool
) -> tuple[TakedownList, Holdings, Likeness]:
    """Return the list as the arguments widen it, what it finds, and what it could be widened by yet.

    Args:
        indexed: whether the index of rows may answer, as for a question; what removes rows reads all shards.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.storage.holdings import search
    from altdiffusion.storage.likeness import ALIKE_BITS, find_likeness

    holdings = search(lake, wanted, listed=wanted.tombstones if indexed else None)
    if arguments.same_bytes or arguments.alike is not None:
        likeness = find_likeness(holdings, arguments.alike or 0)
        alike = arguments.alike is not None
        wanted = takedown.widened(wanted, likeness, same_bytes=arguments.same_bytes, alike=alike)
        holdings = search(lake, wanted, listed=wanted.tombstones if indexed else None)
    return wanted, holdings, find_likeness(holdings, arguments.alike or ALIKE_BITS)


def print_likeness(likeness: Likeness) -> None:
    if likeness.same_bytes or likeness.alike:
        print(f"{likeness}; --same-bytes and --alike BITS mean them too")


def purge_pages(lake: Lake, needles: Needles, refs: set[str]) -> None:
    """Make pages that show rows of these versions again, and print which."""
    from altdiffusion.curation.report.purge import purge
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage.shown import concerned

    changed = purge(lake, needles, concerned(graphs.scan(lake.uri), refs))
    print(f"{len(changed):,} pages and copies made again without the rows" + (":" if changed else ""))
    for uri in changed:
        print(f"  {uri}")


def print_judges(judges: Sequence[TaughtJudge]) -> None:
    """Print which judges a takedown has deleted."""
    for judge in judges:
        print(f"deleted judge {judge}")
