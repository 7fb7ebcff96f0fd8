"""The proof of a thing: every digest on the way from it to its sources, computed again from the files themselves.

    dataset version     SHA-256 of manifest and table of shards, and of every shard of accepted and rejected rows
    checkpoint          the seal of COMPLETE.json, and SHA-256 of every file
    export, model       the checksum of lineage.json, and the digest of the folder's content

A shallow proof reads manifests, tables, seals and states alone. Files are read in blocks: memory is 1 MiB per thread,
the table of shards of one version, and 64 bytes per file that several versions share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from altdiffusion.diffusion.folder import content_digest, model_ref, read_lineage
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Node
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import ROLES, Lake, Version
from altdiffusion.storage.erased import read_erased
from altdiffusion.storage.verification import THREADS, shard_damage
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.run.record import read_record

_ROWS = ("image", "prompt", "row")


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What was checked of one thing."""

    node: Node
    files: int = 0
    bytes: int = 0
    damages: tuple[str, ...] = ()
    unchecked: str = ""
    """Why nothing, or not everything, was checked; empty if all was."""

    def to_json(self) -> dict[str, Any]:
        return {
            "ref": self.node.ref,
            "files": self.files,
            "bytes": self.bytes,
            "damages": list(self.damages),
            "unchecked": self.unchecked or None,
        }


def prove(lake_uri: str, nodes: Iterable[Node], *, shallow: bool = False, threads: int = THREADS) -> Iterator[Proved]:
    """Yield what is wrong with each of some things; rows and images are parts of their datasets, and left out.

    Args:
        shallow: check manifests alone.
    """
    found = list(nodes)
    shards: set[tuple[str, str]] = set()  # versions share files, which are read once
    folders = _model_folders(lake_uri, found)
    for node in found:
        if node.kind == "dataset":
            yield _dataset(lake_uri, node, shards, shallow, threads)
        elif node.kind == "checkpoint":
            yield _checkpoint(lake_uri, node, shallow)
        elif node.kind in ("export", "model"):
            yield _folder(node, node.uri or folders.get(node.ref, ""), shallow)
        elif node.kind not in _ROWS:
            yield Proved(node=node, unchecked="the lake holds no copy of it, only its digest")


def _dataset(lake_uri: str, node: Node, known: set[tuple[str, str]], shallow: bool, threads: int) -> Proved:
    lake, ref = Lake(lake_uri), Ref.parse(node.ref)
    try:
        erased = read_erased(lake, ref) if node.missing else None
        if erased is not None:
            return Proved(node=node, files=1, unchecked="its rows were erased; its manifest is kept, and is as it was")
        version = lake.version(ref)
        infos = [(role, info) for role in ROLES for info in version.infos(role)]
        size = files.size_bytes(files.join(version.uri, "manifest.json")) + files.size_bytes(version.table_uri)
    except AltDiffusionError as error:
        return Proved(node=node, damages=(f"{error.what}: {error.problem}",))
    if shallow:
        return Proved(node=node, files=2, bytes=size, unchecked=f"{len(infos):,} shards were not read (--shallow)")
    tasks = [
        (files.join(version.folder_uri, role), info)
        for role, info in infos
        if (version.folder_uri, info.sha256) not in known
    ]
    known.update((version.folder_uri, info.sha256) for _, info in infos)
    damages = _damages(tasks, threads)
    return Proved(
        node=node,
        files=2 + len(tasks),
        bytes=size + sum(info.bytes for _, info in tasks),
        damages=damages,
        unchecked=_rows_wrong(version),
    )


def _rows_wrong(version: Version) -> str:
    """Return why a version's count of rows is not proved; empty if the shards add up to it."""
    rows = version.shard_starts[-1]
    return "" if rows == version.rows else f"its manifest counts {version.rows:,} rows, its shards {rows:,}"


def _damages(tasks: list[Any], threads: int) -> tuple[str, ...]:
    found: list[str] = []
    waiting = iter(tasks)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(waiting, 64 * threads)):
            found += [str(damage) for damage in pool.map(shard_damage, batch) if damage is not None]
    return tuple(found)


def _checkpoint(lake_uri: str, node: Node, shallow: bool) -> Proved:
    ref = Ref.parse(node.ref)
    folder = checkpoints.folder_of(lake_uri, *checkpoints.run_and_step(ref))
    try:
        found = checkpoints.open_sealed(lake_uri, ref)
        problems = [] if shallow else checkpoints.verify(folder)
    except AltDiffusionError as error:
        return Proved(node=node, damages=(f"{error.what}: {error.problem}",))
    names = (checkpoints.COMPLETE, checkpoints.STATE) if shallow else (checkpoints.COMPLETE, *found.files)
    return Proved(
        node=node,
        files=len(names),
        bytes=_size(folder, names),
        damages=tuple(f"{folder}/{problem}" for problem in problems),
        unchecked="weights were not read (--shallow)" if shallow else "",
    )


def _size(folder: str, names: Iterable[str]) -> int:
    return sum(files.size_bytes(uri) for uri in (files.join(folder, name) for name in names) if files.exists(uri))


def _folder(node: Node, uri: str, shallow: bool) -> Proved:
    if not uri:
        return Proved(node=node, unchecked="no folder of this lake or of its runs holds it")
    try:
        recorded = (read_lineage(uri) or {}).get("content")
        if shallow:
            return Proved(node=node, files=1, unchecked="its content was not read (--shallow)")
        count, size = _listing(uri)
        content = content_digest(uri)
        is_named = model_ref(uri, content).digest == node.digest
    except AltDiffusionError as error:
        return Proved(node=node, damages=(f"{error.what}: {error.problem}",))
    damages = []
    if recorded is not None and recorded != content:
        damages.append(f"{uri}: its content is {content[:12]}, its lineage.json records {str(recorded)[:12]}")
    if not is_named:
        damages.append(f"{uri}: is another folder than the one of digest {node.digest[:12]}: it was changed")
    unchecked = "" if recorded is not None or content == node.digest else "its lineage.json records no content"
    return Proved(node=node, files=count, bytes=size, damages=tuple(damages), unchecked=unchecked)


def _listing(uri: str) -> tuple[int, int]:
    """Return the number and the bytes of the files below a folder."""
    fs, path = files.filesystem(uri)
    found = fs.find(path, detail=True)
    return len(found), sum(int(entry["size"] or 0) for entry in found.values())


def _model_folders(lake_uri: str, nodes: Iterable[Node]) -> dict[str, str]:
    """Return the folders of models that only the records of runs name, by the models' references.

    A run names its models by reference and by folder, and a reference has the folder's name.
    """
    models = {node.name: node.ref for node in nodes if node.kind == "model" and not node.uri}
    found: dict[str, str] = {}
    runs = {Ref.parse(node.ref).name.rpartition("/")[0] for node in nodes if node.kind == "checkpoint"}
    for run in sorted(runs) if models else ():
        try:
            record = read_record(lake_uri, run) or {}
        except AltDiffusionError:  # the record is under no digest: without it, the model stays unchecked, as is stated
            continue
        for key in ("base", "text_encoder", "teacher"):
            folder = record.get(key)
            if folder and files.exists(folder):
                ref = models.get(model_ref(folder, "0" * 64).name)
                if ref is not None and ref in record.get("models", ()):
                    found.setdefault(ref, folder)
    return found
