"""Takedown of listed rows: `altdiffusion dataset remove|erase` and `altdiffusion lineage impact`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, dataset_argument, json_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.curation.links.takedown import TakedownList
    from altdiffusion.curation.report.purge import Needles
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.holdings import Holdings
    from altdiffusion.storage.likeness import Likeness
    from altdiffusion.storage.removal import Removal

_SHOWN_LINES = 20
_PURGE = "also make reports, artifacts and other pages that show such rows again, without them"
_LIST = "text file of hash:<sample_id>, sha256:<hex>, url:<link> and domain:<name> lines, as in a blocklist"


def register(dataset_verbs: Verbs, lineage_verbs: Verbs) -> None:
    """Add `remove` and `erase` to the verbs of `dataset`, and `impact` to those of `lineage`."""
    parser = dataset_verbs.add_parser("remove", help="takedown: the next version, without the listed rows")
    dataset_argument(parser)
    parser.add_argument("--hashes", metavar="FILE", required=True, help=_LIST)
    _likeness_arguments(parser)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the record of the takedown")
    parser.add_argument("--by", metavar="TEXT", default="", help="who asked, for the record of the takedown")
    parser.add_argument("--purge", action="store_true", help=_PURGE)
    parser.add_argument("--blocklist-out", metavar="FILE", help="write the lines that keep the rows from coming back")
    lake_argument(parser)
    parser.set_defaults(run=remove_rows)
    parser = dataset_verbs.add_parser(
        "erase", help="delete an old version, and the files that no other version refers to"
    )
    parser.add_argument("name", metavar="NAME@DIGEST", help="a version that is not the head")
    parser.add_argument("--purge", action="store_true", help=_PURGE)
    lake_argument(parser)
    parser.set_defaults(run=erase_version)
    parser = lineage_verbs.add_parser("impact", help="what holds the listed rows, and what was made from them")
    lists = parser.add_mutually_exclusive_group(required=True)
    lists.add_argument("--hashes", metavar="FILE", help=_LIST)
    lists.add_argument("--urls", metavar="FILE", help="text file of one link per line")
    _likeness_arguments(parser)
    json_argument(parser)
    lake_argument(parser)
    parser.set_defaults(run=show_impact)


def _likeness_arguments(parser: argparse.ArgumentParser) -> None:
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


def _widened(
    arguments: argparse.Namespace, lake: Lake, wanted: TakedownList
) -> tuple[TakedownList, Holdings, Likeness]:
    """Return the list as the arguments widen it, what it finds, and what it could be widened by yet."""
    from altdiffusion.curation.links import takedown
    from altdiffusion.storage.holdings import search
    from altdiffusion.storage.likeness import ALIKE_BITS, find_likeness

    holdings = search(lake, wanted)
    if arguments.same_bytes or arguments.alike is not None:
        likeness = find_likeness(holdings, arguments.alike or 0)
        alike = arguments.alike is not None
        wanted = takedown.widened(wanted, likeness, same_bytes=arguments.same_bytes, alike=alike)
        holdings = search(lake, wanted)
    return wanted, holdings, find_likeness(holdings, arguments.alike or ALIKE_BITS)


def _likeness_json(likeness: Likeness) -> dict[str, int]:
    return {"other_rows_of_same_bytes": likeness.same_bytes, "other_rows_alike": likeness.alike}


def _print_likeness(likeness: Likeness) -> None:
    if likeness.same_bytes or likeness.alike:
        print(f"{likeness}; --same-bytes and --alike BITS mean them too")


def remove_rows(arguments: argparse.Namespace) -> int:
    """Take rows down, and print what is left to do; return 3 if another dataset is damaged.

    Raises:
        AltDiffusionError: there is no such version, the list is unusable, or a shard cannot be read.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage.dataset import Lake

    lake = Lake(arguments.lake)
    before = lake.version(arguments.name)
    wanted, _, likeness = _widened(arguments, lake, takedown.read_list(arguments.hashes))
    removal, holdings = takedown.take_down(lake, before, wanted, reason=arguments.reason, by=arguments.by)
    print(f"list {arguments.hashes}: {takedown.described(wanted.lines)} (sha256 {wanted.sha256[:12]})")
    print(_summary(removal))
    _print_likeness(likeness)
    found = takedown.impact_of(lake, wanted, holdings, graphs.scan(lake.uri))
    print(impacts.render(found), end="")
    if arguments.purge:
        from altdiffusion.curation.report.purge import needles_of

        _purge(lake, needles_of(holdings), {held.node.ref for held in (*found.held, *found.erased)})
    steps = impacts.renewal(found, lake.uri, arguments.hashes)
    leftover_steps, wrong = _leftovers(lake)
    steps += leftover_steps
    if steps:
        print("what to do about it:")
    for label, step in steps:
        print(f"  {label}\n    {step}")
    _print_blocklist(takedown.blocklist_lines(wanted, holdings), arguments.blocklist_out)
    return report_damaged(wrong)


def _purge(lake: Lake, needles: Needles, refs: set[str]) -> None:
    """Make pages that show rows of these versions again, and print which."""
    from altdiffusion.curation.report.purge import purge
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage.shown import concerned

    changed = purge(lake, needles, concerned(graphs.scan(lake.uri), refs))
    print(f"{len(changed):,} pages and copies made again without the rows" + (":" if changed else ""))
    for uri in changed:
        print(f"  {uri}")


def _leftovers(lake: Lake) -> tuple[list[tuple[str, str]], list[AltDiffusionError]]:
    """Return what to do about files that no manifest names and that hold rows that were taken down.

    Returns:
        As (their label, an instruction); and what kept datasets from being looked at.
    """
    from altdiffusion.storage.garbage import holds_taken_down, leftovers
    from altdiffusion.storage.tombstones import read_tombstones

    tombstones = read_tombstones(lake.uri)
    steps: list[tuple[str, str]] = []
    wrong: list[AltDiffusionError] = []
    for name in lake.names():
        try:
            held = [file for file in leftovers(lake.dataset(name)) if holds_taken_down(file, tombstones)]
        except AltDiffusionError as error:
            wrong.append(error)
            continue
        if held:
            label = f"{len(held):,} files of {name} that no manifest names, {held[0].uri} among them"
            command = f"altdiffusion gc --older-than 0s --yes --lake {lake.uri}"
            steps.append((label, f"when no job is running: {command}"))
    return steps, wrong


def _summary(removal: Removal) -> str:
    """Return one line on what a takedown did."""
    before, after = removal.before, removal.after
    if after is None:
        return f"{before.ref.short} holds none of these rows; no new version"
    shards = len(after.shards)
    head = "head" if removal.is_head else f"not the head: {before.ref.short} is not either"
    return (
        f"{before.ref.short} -> {after.ref.short} ({'already there, ' if removal.already else ''}{head}): "
        f"{removal.rows:,} rows removed, links of {removal.links:,} rejected rows erased; "
        f"{removal.rewritten:,} of {shards:,} shards rewritten, {shards - removal.rewritten:,} shared"
    )


def _print_blocklist(lines: list[str], file: str | None) -> None:
    """Print the first lines that keep the rows from coming back, and write all of them to `file` if it is given."""
    from altdiffusion.storage import files

    print("to keep the rows from coming back, append to the blocklist of every source and to download.image_blocklist,")
    print("and pin the SHA-256 of the files as they are then:")
    for line in lines[:_SHOWN_LINES]:
        print(f"  {line}")
    if len(lines) > _SHOWN_LINES:
        print(f"  and {len(lines) - _SHOWN_LINES:,} more (--blocklist-out FILE writes all)")
    if file:
        text = "".join(f"{line}\n" for line in lines).encode()
        files.write_atomic(file, text)
        print(f"wrote {file}: {len(lines):,} lines, sha256 {files.sha256_hex(text)}")


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

        _purge(lake, Needles(), {str(version.ref)})
    erased = erase(lake.dataset(name), version)
    print(f"{version.ref.short}: erased, {erased.files:,} files, {erased.bytes / 1e6:,.1f} MB")
    return 0


def show_impact(arguments: argparse.Namespace) -> int:
    """Print what holds the listed rows and what was made from them; return 3 if something is damaged.

    Raises:
        AltDiffusionError: the lake or the list is not usable.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage.dataset import Lake

    wanted = takedown.read_list(arguments.hashes) if arguments.hashes else takedown.read_urls(arguments.urls)
    graph = graphs.scan(arguments.lake)
    lake = Lake(arguments.lake)
    wanted, holdings, likeness = _widened(arguments, lake, wanted)
    found = takedown.impact_of(lake, wanted, holdings, graph)
    if arguments.json:
        print(
            json.dumps(
                {"list_sha256": wanted.sha256, **found.to_json(), **_likeness_json(likeness)},
                ensure_ascii=False,
                indent=2,
            )
        )
    else:
        print(impacts.render(found), end="")
        _print_likeness(likeness)
    return 3 if graph.damaged or holdings.damaged or holdings.unreadable else 0
