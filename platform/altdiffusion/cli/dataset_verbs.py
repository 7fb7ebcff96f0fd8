"""`altdiffusion dataset list|show`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from altdiffusion.cli.arguments import Verbs, dataset_argument, json_argument, lake_argument
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.storage.dataset import Lake, Version


def register(verbs: Verbs) -> None:
    """Add `list` and `show` to the verbs of `dataset`."""
    parser = verbs.add_parser("list", help="all versions in a lake")
    lake_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=list_versions)
    parser = verbs.add_parser("show", help="one version: rows by language, rejects by reason, parents, config")
    dataset_argument(parser)
    lake_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=show_version)


def list_versions(arguments: argparse.Namespace) -> int:
    """Print all versions; report a damaged one, still list the others, and return 2."""
    from altdiffusion.storage.dataset import Lake

    lake = Lake(arguments.lake)
    rows, wrong = _versions(lake)
    for error in wrong:
        print(f"error: {error}", file=sys.stderr)
    width = max((len(row["name"]) for row in rows), default=0)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif not rows and not wrong:
        print(f"no datasets in {lake.uri}")
    else:
        for row in rows:
            mark = "  head" if row["head"] else ""
            print(f"{row['name']:<{width}}  {row['digest'][:12]}  {row['kind']:<11}  {row['rows']:>12,} rows{mark}")
    return 2 if wrong else 0


def _versions(lake: Lake) -> tuple[list[dict[str, Any]], list[AltDiffusionError]]:
    """Return one row per version that can be opened, and what is wrong with the others."""
    from altdiffusion.storage.summaries import read_summaries

    rows: list[dict[str, Any]] = []
    wrong: list[AltDiffusionError] = []
    for name in lake.names():
        try:
            dataset = lake.dataset(name)
            versions = read_summaries(dataset)
        except AltDiffusionError as error:
            wrong.append(error)
            continue
        wrong += versions.damaged
        head = None
        try:
            head = dataset.head_digest()
        except AltDiffusionError as error:
            wrong.append(error)
        for digest, one in versions.by_digest.items():
            rows.append({"name": name, "digest": digest, "kind": one.kind, "rows": one.rows, "head": head == digest})
    return rows, wrong


def show_version(arguments: argparse.Namespace) -> int:
    """Print a version's manifest, as text or as JSON.

    Raises:
        AltDiffusionError: there is no such dataset or version, or its manifest is damaged.
    """
    from altdiffusion.storage.dataset import Lake

    version = Lake(arguments.lake).version(arguments.name)
    if arguments.json:
        print(json.dumps(asdict(version.manifest), ensure_ascii=False, indent=2))
    else:
        print(_shown(version))
    return 0


def _shown(version: Version) -> str:
    manifest = version.manifest
    lines = [
        str(version.ref),
        f"kind      {manifest.kind}, {manifest.rows:,} rows in {len(version.shards)} shards "
        f"({sum(shard.bytes for shard in version.shards) / 1e6:,.1f} MB)",
        f"folder    {version.uri}",
        f"made by   altdiffusion {manifest.code_version}, config {manifest.fingerprint[:12]}",
        *(f"parent    {parent}" for parent in manifest.parents),
        "languages " + (", ".join(f"{k} {v:,}" for k, v in manifest.rows_by_language.items()) or "none"),
        "rejected  " + (", ".join(f"{k} {v:,}" for k, v in manifest.rejects_by_reason.items()) or "none"),
        "config    " + json.dumps(manifest.config, ensure_ascii=False, sort_keys=True),
    ]
    return "\n".join(lines)
