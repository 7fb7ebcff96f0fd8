"""`altdiffusion dataset remove`: a takedown, from one dataset or from all datasets of a lake."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, lake_argument, report_damaged
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
    from altdiffusion.curation.links.takedown import TakedownList
    from altdiffusion.storage.dataset import Lake, Version
    from altdiffusion.storage.holdings import Holdings
    from altdiffusion.storage.likeness import Likeness
    from altdiffusion.storage.removal import Removal

_SHOWN_LINES = 20


def register(verbs: Verbs) -> None:
    """Add `remove` to the verbs of `dataset`."""
    parser = verbs.add_parser("remove", help="takedown: the next version, of one dataset or all, without the rows")
    parser.add_argument(
        "name", metavar="NAME[@DIGEST]", nargs="?",
        help="one dataset, at once; without digest, its newest version. Without a name, a plan for all datasets",
    )  # fmt: skip
    parser.add_argument("--hashes", metavar="FILE", required=True, help=LIST)
    parser.add_argument("--all", action="store_true", help="the heads of all datasets, as without a name")
    parser.add_argument("--yes", action="store_true", help="carry out the plan for all datasets")
    likeness_arguments(parser)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the record of the takedown")
    parser.add_argument("--by", metavar="TEXT", default="", help="who asked, for the record of the takedown")
    parser.add_argument("--purge", action="store_true", help=PURGE)
    parser.add_argument("--blocklist-out", metavar="FILE", help="write the lines that keep the rows from coming back")
    lake_argument(parser)
    parser.set_defaults(run=remove_rows)


def remove_rows(arguments: argparse.Namespace) -> int:
    """Take rows down from one dataset, or plan that for all and, with `--yes`, do it.

    Returns:
        0; 3 if a part of the lake is damaged.

    Raises:
        AltDiffusionError: there is no such version, the list is unusable, or a shard of the version cannot be read.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.storage.dataset import Lake

    if arguments.name is not None and arguments.all:
        raise AltDiffusionError(
            f"dataset remove {arguments.name} --all", "names one dataset and all of them", "leave out one of the two"
        )
    lake = Lake(arguments.lake)
    one = lake.version(arguments.name) if arguments.name is not None else None
    wanted, holdings, likeness = widened_list(arguments, lake, takedown.read_list(arguments.hashes), indexed=False)
    print(f"list {arguments.hashes}: {takedown.described(wanted.lines)} (sha256 {wanted.sha256[:12]})")
    if one is not None:
        return _take_down(arguments, lake, [one], wanted, holdings, likeness)
    return _remove_everywhere(arguments, lake, wanted, holdings, likeness)


def _remove_everywhere(
    arguments: argparse.Namespace, lake: Lake, wanted: TakedownList, holdings: Holdings, likeness: Likeness
) -> int:
    """Print what a takedown does to all datasets and what it concerns; with `--yes`, do it."""
    from altdiffusion.curation.links import takedown
    from altdiffusion.curation.links.takedown_plan import plan_of
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts

    graph = graphs.scan(lake.uri)
    plan = plan_of(graph, holdings)
    print("plan, sources first:" if plan.steps else "plan: the head of no dataset holds these rows")
    for number, step in enumerate(plan.steps, start=1):
        print(f"  {number}. {step}")
    if not arguments.yes:
        found = takedown.impact_of(lake, wanted, holdings, graph)
        print(impacts.render(found), end="")
        print_likeness(likeness)
        print("nothing was changed. To keep the rows out of this lake and carry out the plan, add --yes")
        return report_damaged((*plan.unreadable, *found.damaged))
    status = _take_down(arguments, lake, [step.before for step in plan.steps], wanted, holdings, likeness)
    return max(status, report_damaged(plan.unreadable))


def _take_down(
    arguments: argparse.Namespace,
    lake: Lake,
    versions: Sequence[Version],
    wanted: TakedownList,
    holdings: Holdings,
    likeness: Likeness,
) -> int:
    """Take rows down from versions, in this order, and print what is left to do; return 3 if a dataset is damaged."""
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage.removal import remove

    judges = takedown.keep_out(lake, versions, wanted, holdings, reason=arguments.reason, by=arguments.by)
    print_judges(judges)
    for version in versions:
        print(_summary(remove(lake.dataset(version.manifest.name), version, holdings, wanted.sha256)), flush=True)
    print_likeness(likeness)
    found = takedown.impact_of(lake, wanted, holdings, graphs.scan(lake.uri))
    print(impacts.render(found), end="")
    if arguments.purge:
        from altdiffusion.curation.report.purge import needles_of

        purge_pages(lake, needles_of(holdings), {held.node.ref for held in (*found.held, *found.erased)})
    steps = impacts.renewal(found, lake.uri, arguments.hashes)
    leftover_steps, wrong = _leftovers(lake)
    steps += leftover_steps
    if steps:
        print("what to do about it:")
    for label, step in steps:
        print(f"  {label}\n    {step}")
    _print_blocklist(takedown.blocklist_lines(wanted, holdings), arguments.blocklist_out)
    return report_damaged(wrong)


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
