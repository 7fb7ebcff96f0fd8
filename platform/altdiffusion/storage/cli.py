"""`altdiffusion dataset list|show|verify`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from altdiffusion.storage.dataset import Lake, Version


def register(subparsers: Any) -> None:
    """Adds `dataset` to the command line (`subparsers`: what ArgumentParser.add_subparsers returned)."""
    parser = subparsers.add_parser("dataset", help="list, show and verify dataset versions")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|verify")
    for action, text in (
        ("list", "all versions in a lake"),
        ("show", "one version: rows by language, rejects by reason, parents, config"),
        ("verify", "read every file of a version and compare it with its manifest; status 1 if one is damaged"),
    ):
        one = actions.add_parser(action, help=text)
        if action != "list":
            one.add_argument("name", metavar="NAME[@DIGEST]", help="a dataset; without digest, its newest version")
        default = os.environ.get("ALTDIFFUSION_LAKE")
        one.add_argument(
            "--lake",
            metavar="URI",
            default=default,
            required=default is None,
            help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
        )
        if action != "verify":
            one.add_argument("--json", action="store_true", help="for programs")
        one.set_defaults(run=cmd_dataset)


def cmd_dataset(arguments: argparse.Namespace) -> int:
    """Runs a parsed `dataset` command.

    Raises:
        AltDiffusionError: no such dataset or version, or its manifest is damaged.
    """
    lake = Lake(arguments.lake)
    if arguments.action == "list":
        _list(lake, as_json=arguments.json)
        return 0
    version = lake.version(arguments.name)
    if arguments.action == "show":
        print(json.dumps(asdict(version.manifest), ensure_ascii=False, indent=2) if arguments.json else _shown(version))
        return 0
    problems = version.verify()
    for problem in problems:
        print(problem, file=sys.stderr)
    files = len(version.shards) + len(version.rejects) if not problems else 0
    if problems:
        print(
            f"error: {version.ref.short}: {len(problems)} damaged or missing. Remedy: delete those that are there, "
            "then run the job that made it again: only what is missing is made",
            file=sys.stderr,
        )
        return 1
    print(f"{version.ref.short}: {files} files, {version.rows:,} rows, all as the manifest says")
    return 0


def _list(lake: Lake, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name in lake.names():
        dataset = lake.dataset(name)
        head = dataset.head()
        for digest in dataset.digests():
            manifest = dataset.open(digest).manifest
            is_head = head is not None and head.ref.digest == digest
            rows.append({"name": name, "digest": digest, "kind": manifest.kind, "rows": manifest.rows, "head": is_head})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        mark = "  head" if row["head"] else ""
        print(f"{row['name']:<{width}}  {row['digest'][:12]}  {row['kind']:<11}  {row['rows']:>12,} rows{mark}")
    if not rows:
        print(f"no datasets in {lake.uri}")


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
