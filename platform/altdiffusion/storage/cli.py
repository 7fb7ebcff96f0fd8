"""`altdiffusion dataset list|show|verify|erase`; `remove` and `export` are curation's (`curation.cli`)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.erasure import erase
from altdiffusion.storage.removal import REASON
from altdiffusion.storage.verification import Check, forget, verify


def register(subparsers: Any) -> Any:
    """Add `dataset` to the command line.

    Args:
        subparsers: the return value of ArgumentParser.add_subparsers.

    Returns:
        The subparsers of its actions, to which other packages add theirs.
    """
    parser = subparsers.add_parser("dataset", help="list, show, verify, export, remove from and erase dataset versions")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|verify|export|remove|erase")
    for action, text in (
        ("list", "all versions in a lake"),
        ("show", "one version: rows by language, rejects by reason, parents, config"),
        ("verify", "read every file of a version and compare it with its manifest; status 1 if one is damaged"),
        ("erase", "delete an old version, and the files that no other version refers to"),
    ):
        one = actions.add_parser(action, help=text)
        if action == "erase":
            one.add_argument("name", metavar="NAME@DIGEST", help="a version that is not the head")
        elif action != "list":
            one.add_argument("name", metavar="NAME[@DIGEST]", help="a dataset; without digest, its newest version")
        default = os.environ.get("ALTDIFFUSION_LAKE")
        one.add_argument(
            "--lake",
            metavar="URI",
            default=default,
            required=default is None,
            help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
        )
        if action in ("list", "show"):
            one.add_argument("--json", action="store_true", help="print JSON, for programs")
        if action == "verify":
            one.add_argument(
                "--forget",
                action="store_true",
                help="remove the damaged files, so that their job makes them again, and nothing else",
            )
        one.set_defaults(run=cmd_dataset)
    return actions


def cmd_dataset(arguments: argparse.Namespace) -> int:
    """Run a parsed `dataset` command and return its exit status.

    Raises:
        AltDiffusionError: there is no such dataset or version, or its manifest is damaged.
    """
    lake = Lake(arguments.lake)
    if arguments.action == "list":
        return _list(lake, as_json=arguments.json)
    if arguments.action == "verify":
        return _verify(lake, arguments.name, forgets=arguments.forget)
    if arguments.action == "erase":
        return _erase(lake, arguments.name)
    version = lake.version(arguments.name)
    print(json.dumps(asdict(version.manifest), ensure_ascii=False, indent=2) if arguments.json else _shown(version))
    return 0


def _verify(lake: Lake, text: str, *, forgets: bool) -> int:
    name, _, prefix = text.removeprefix("dataset:").partition("@")
    check = verify(lake.dataset(name), prefix)
    if not check.damages:
        assert check.version is not None
        version = check.version
        count = len(version.shards) + len(version.rejects)
        print(f"{version.ref.short}: {count:,} files, {version.rows:,} rows, all as in the manifest")
        return 0
    for damage in check.damages:
        print(damage, file=sys.stderr)
    bad = f"{len(check.damages):,} damaged or missing"
    if forgets:
        forget(check.damages)
        print(f"{text}: {bad}, now removed. Next: run {_again(lake, name, check)}")
    else:
        command = f"altdiffusion dataset verify {text} --forget --lake {lake.uri}"
        print(f"error: {text}: {bad}. Remedy: run `{command}`, then run {_again(lake, name, check)}", file=sys.stderr)
    return 1


def _again(lake: Lake, name: str, check: Check) -> str:
    """Return the description of what to run to make missing files of this version again."""
    version = check.version
    if version is not None and REASON in version.manifest.config:
        parent = version.manifest.parent_refs[0]
        listed = str(version.manifest.config[REASON])[:12]
        return (
            f"`altdiffusion dataset remove {name}@{parent.digest[:12]} --hashes FILE --lake {lake.uri}` with the list "
            f"of sha256 {listed}, after the job that made {parent.short} if a file of that version is missing too"
        )
    jobs = _jobs(lake, version) if version is not None else ""
    return f"the job that made it{jobs} again: it makes only what is missing"


def _jobs(lake: Lake, version: Version) -> str:
    """Return the finished runs of jobs that recorded the version as their result: ` (curate-demo)`, or nothing."""
    folder = files.join(lake.uri, "runs")
    names = []
    for file in files.list_names(folder):
        try:
            document = files.read_json(files.within(lake.uri, "runs", file), strict=True)
        except AltDiffusionError:
            continue
        if isinstance(document, dict) and version.ref.short in str(document.get("result")):
            names.append(file.rpartition("-")[0])
    return f" ({', '.join(sorted(set(names)))})" if names else ""


def _erase(lake: Lake, text: str) -> int:
    name, at, _ = text.removeprefix("dataset:").partition("@")
    if not at:
        raise AltDiffusionError(f"version {text}", "has no digest", f"write {text}@DIGEST; `dataset list` shows them")
    version = lake.version(text)
    erased = erase(lake.dataset(name), version)
    print(f"{version.ref.short}: erased, {erased.files:,} files, {erased.bytes / 1e6:,.1f} MB")
    return 0


def _list(lake: Lake, *, as_json: bool) -> int:
    """Print all versions; report a damaged one and still list the others."""
    rows: list[dict[str, Any]] = []
    wrong: list[AltDiffusionError] = []
    for name in lake.names():
        try:
            dataset = lake.dataset(name)
            digests = dataset.digests()
        except AltDiffusionError as error:
            wrong.append(error)
            continue
        head = None
        try:
            head = dataset.head_digest()
        except AltDiffusionError as error:
            wrong.append(error)
        for digest in digests:
            try:
                manifest = dataset.open(digest).manifest
            except AltDiffusionError as error:
                wrong.append(error)
                continue
            is_head = head == digest
            rows.append({"name": name, "digest": digest, "kind": manifest.kind, "rows": manifest.rows, "head": is_head})
    for each in wrong:
        print(f"error: {each}", file=sys.stderr)
    status = 2 if wrong else 0
    if as_json:
        print(json.dumps(rows, indent=2))
        return status
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        mark = "  head" if row["head"] else ""
        print(f"{row['name']:<{width}}  {row['digest'][:12]}  {row['kind']:<11}  {row['rows']:>12,} rows{mark}")
    if not rows and not wrong:
        print(f"no datasets in {lake.uri}")
    return status


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
