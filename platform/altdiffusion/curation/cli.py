"""`altdiffusion dataset remove|export` and `altdiffusion lineage impact`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

_SHOWN_LINES = 20
_LIST = "text file of hash:<sample_id>, sha256:<hex>, url:<link> and domain:<name> lines, as in a blocklist"


def register(dataset_actions: Any, lineage_actions: Any) -> None:
    """Add `remove` and `export` to the actions of `dataset`, and `impact` to those of `lineage`."""
    one = dataset_actions.add_parser("remove", help="takedown: the next version, without the listed rows")
    one.add_argument("name", metavar="NAME[@DIGEST]", help="a dataset; without digest, its newest version")
    one.add_argument("--hashes", metavar="FILE", required=True, help=_LIST)
    one.add_argument("--blocklist-out", metavar="FILE", help="write the lines that keep the rows from returning")
    one.set_defaults(run=cmd_remove)
    other = lineage_actions.add_parser("impact", help="what holds the listed rows, and what was made from them")
    lists = other.add_mutually_exclusive_group(required=True)
    lists.add_argument("--hashes", metavar="FILE", help=_LIST)
    lists.add_argument("--urls", metavar="FILE", help="text file of one link per line")
    other.add_argument("--json", action="store_true", help="for programs")
    other.set_defaults(run=cmd_impact)
    export = dataset_actions.add_parser("export", help="write images as img2dataset does, for its readers")
    export.add_argument("name", metavar="NAME[@DIGEST]", help="a dataset of images; without digest, its newest version")
    export.add_argument("--format", choices=("webdataset", "files", "parquet"), required=True)
    export.add_argument("--output", metavar="FOLDER", required=True, help="a new or empty folder, or an address of one")
    export.add_argument("--rows-per-shard", metavar="N", type=int, default=10_000, help="default: 10000")
    export.set_defaults(run=cmd_export)
    for parser in (one, other, export):
        default = os.environ.get("ALTDIFFUSION_LAKE")
        parser.add_argument(
            "--lake",
            metavar="URI",
            default=default,
            required=default is None,
            help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
        )


def cmd_remove(arguments: argparse.Namespace) -> int:
    """Take rows down, and print what is left to do.

    Raises:
        AltDiffusionError: no such version, an unusable list, or a shard that cannot be read.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage import files
    from altdiffusion.storage.dataset import Lake

    lake = Lake(arguments.lake)
    wanted = takedown.read_list(arguments.hashes)
    removal, holdings = takedown.take_down(lake, lake.version(arguments.name), wanted)
    print(f"list {arguments.hashes}: {takedown.described(wanted.lines)} (sha256 {wanted.sha256[:12]})")
    print(summary(removal))
    found = impacts.impact(graphs.scan(lake.uri), holdings)
    print(impacts.render(found), end="")
    steps = impacts.renewal(found, lake.uri, arguments.hashes)
    if steps:
        print("what to do about it:")
    for label, step in steps:
        print(f"  {label}\n    {step}")
    lines = takedown.blocklist_lines(wanted, holdings)
    print("to keep the rows from returning, append to the blocklist of every source and to download.image_blocklist,")
    print("and pin the SHA-256 of the files as they are then:")
    for line in lines[:_SHOWN_LINES]:
        print(f"  {line}")
    if len(lines) > _SHOWN_LINES:
        print(f"  and {len(lines) - _SHOWN_LINES:,} more (--blocklist-out FILE writes all)")
    if arguments.blocklist_out:
        text = "".join(f"{line}\n" for line in lines).encode()
        files.write_atomic(arguments.blocklist_out, text)
        print(f"wrote {arguments.blocklist_out}: {len(lines):,} lines, sha256 {files.sha256_hex(text)}")
    return 0


def summary(removal: Any) -> str:
    """Return one line on what a takedown did (`removal.Removal`)."""
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


def cmd_impact(arguments: argparse.Namespace) -> int:
    """Print where rows are, and what was made from them.

    Raises:
        AltDiffusionError: the lake or the list is not usable.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import impact as impacts
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.holdings import search

    wanted = takedown.read_list(arguments.hashes) if arguments.hashes else takedown.read_urls(arguments.urls)
    graph = graphs.scan(arguments.lake)
    found = impacts.impact(graph, search(Lake(arguments.lake), wanted))
    if arguments.json:
        print(json.dumps({"list_sha256": wanted.sha256, **found.to_json()}, ensure_ascii=False, indent=2))
    else:
        print(impacts.render(found), end="")
    return 0


def cmd_export(arguments: argparse.Namespace) -> int:
    """Write an images version in one of img2dataset's output formats, and print how many rows were written.

    Raises:
        AltDiffusionError: no such version, it does not hold images, or the folder is not empty.
    """
    from altdiffusion.curation.images.image_export import export_images
    from altdiffusion.storage.dataset import Lake

    version = Lake(arguments.lake).version(arguments.name)
    exported = export_images(version, arguments.output, arguments.format, rows_per_shard=arguments.rows_per_shard)
    written = f"{exported.rows:,} rows, {exported.shards:,} shards of {arguments.format}"
    print(f"{version.ref.short} -> {arguments.output}: {written}")
    return 0
