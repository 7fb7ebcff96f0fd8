"""Verification of every file of a version, and removal of damaged files.

A damaged file is worse than a missing one: the job that made it makes a missing file again, and nothing else, but it
takes an existing file to be right. Therefore `forget` removes damaged files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import MADE_BY, ROLES, Dataset, Lake, Version
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.shards import ShardInfo

BLOCK_BYTES = 1 << 20
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged or missing file."""

    uri: str
    problem: str
    forget: str
    """URI to remove so that the next run makes it again: the file, or the version that cannot be read without it."""
    below: str
    """The dataset's folder, outside of which nothing is removed."""

    def __str__(self) -> str:
        return f"{self.uri}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of verifying one version."""

    version: Version | None
    """None where its manifest could not be read."""
    damages: tuple[Damage, ...]


def verify(dataset: Dataset, prefix: str = "", *, threads: int = THREADS) -> Check:
    """Verify the head, the manifest, the table of shards, every shard, and the ledger of one version.

    Memory is one block of 1 MiB per thread, for shards of any size.

    Args:
        prefix: beginning of the version's digest; without one, the version that the bare name means is verified.

    Raises:
        AltDiffusionError: the dataset has no such version, and no trace of one.
    """
    head, damages = _head(dataset)
    digest = _named(dataset, prefix) if prefix else head
    if digest is None:
        if not damages:
            raise dataset.absent()
        return Check(version=None, damages=tuple(damages))
    folder = files.join(dataset.folder_uri, "versions", digest)
    wrong = _manifest(dataset, digest, folder)
    if wrong is not None:
        return Check(version=None, damages=(*damages, wrong))
    try:
        version = dataset.open(digest)
    except AltDiffusionError as error:  # the file has not changed since it was written, but is not a manifest
        wrong = Damage(uri=error.what, problem=error.problem, forget=folder, below=dataset.folder_uri)
        return Check(version=None, damages=(*damages, wrong))
    return Check(version=version, damages=(*damages, *damages_of(version, threads=threads)))


def damages_of(version: Version, *, threads: int = THREADS) -> list[Damage]:
    """Return the damages in everything but the manifest of a version whose manifest is valid."""
    try:
        infos = [(role, info) for role in ROLES for info in version.infos(role)]
    except AltDiffusionError as error:  # without the table of shards, the files that it names are unknown
        uri = files.join(version.uri, "shards.parquet")
        return [Damage(uri=uri, problem=error.problem, forget=version.uri, below=version.folder_uri)]
    ledger = Ledger(files.within(version.folder_uri, "ledger", version.manifest.fingerprint))
    damages = _made_by(version)
    with ThreadPoolExecutor(threads) as pool:
        tasks = ((files.within(version.folder_uri, role), info) for role, info in infos)
        while batch := list(islice(tasks, 64 * threads)):  # a future holds more than a row of the table
            damages += [damage for damage in pool.map(shard_damage, batch) if damage is not None]
        units = sorted(ledger.done_ids())
        damages += [damage for damage in pool.map(lambda unit: _record(ledger, unit), units) if damage is not None]
    return damages


def forget(damages: Sequence[Damage]) -> None:
    """Remove damaged files, so that the next run of the job that made them makes them again, and nothing else."""
    for uri, below in dict.fromkeys((damage.forget, damage.below) for damage in damages):
        files.remove_tree(uri, below=below)


def finished_jobs(lake: Lake, version: Version) -> list[str]:
    """Return the finished runs of jobs that recorded the version as their result, as `<job>-<run>`."""
    folder = files.join(lake.uri, "runs")
    names = set()
    for file in files.list_names(folder):
        try:
            document = files.read_json(files.within(lake.uri, "runs", file), strict=True)
        except AltDiffusionError:  # not a marker of a job; it cannot name the version
            continue
        if isinstance(document, dict) and version.ref.short in str(document.get("result")):
            names.add(file.rpartition("-")[0])
    return sorted(names)


def _head(dataset: Dataset) -> tuple[str | None, list[Damage]]:
    """Return the digest in head.json, or the damage of that file."""
    uri = files.join(dataset.folder_uri, "head.json")
    versions = files.list_names(files.join(dataset.folder_uri, "versions"))
    below = dataset.folder_uri
    try:
        digest = dataset.head_digest()
    except AltDiffusionError as error:
        problem = f"does not name a version ({error.problem})"
        return None, [Damage(uri=uri, problem=problem, forget=uri, below=below)]
    if digest is None:
        return None, [Damage(uri=uri, problem="missing", forget=uri, below=below)] if versions else []
    if digest in versions:
        return digest, []
    problem = f"names version {digest[:12]}, which is missing"
    return None, [Damage(uri=uri, problem=problem, forget=uri, below=below)]


def _named(dataset: Dataset, prefix: str) -> str:
    found = [name for name in files.list_names(files.join(dataset.folder_uri, "versions")) if name.startswith(prefix)]
    return found[0] if len(found) == 1 else dataset.open(prefix).ref.digest


def _manifest(dataset: Dataset, digest: str, folder: str) -> Damage | None:
    uri = files.join(folder, "manifest.json")
    try:
        actual = files.sha256_hex(files.read_bytes(files.beneath(dataset.folder_uri, uri)))
    except AltDiffusionError as error:
        return Damage(uri=uri, problem=error.problem, forget=folder, below=dataset.folder_uri)
    except FileNotFoundError:
        return Damage(uri=uri, problem="missing", forget=folder, below=dataset.folder_uri)
    if actual != digest:
        problem = "its SHA-256 is not its version's digest"
        return Damage(uri=uri, problem=problem, forget=folder, below=dataset.folder_uri)
    return None


def _made_by(version: Version) -> list[Damage]:
    uri = files.join(version.uri, MADE_BY)
    try:
        _ = version.made_by
    except AltDiffusionError as error:
        return [Damage(uri=uri, problem=error.problem, forget=uri, below=version.folder_uri)]
    return []


def shard_damage(task: tuple[str, ShardInfo]) -> Damage | None:
    """Return what is wrong with a shard, read in blocks; None if it is whole.

    Args:
        task: its folder, and what the table of shards states of it.
    """
    folder, info = task
    try:
        uri = shards.shard_uri(folder, info.sha256)
    except AltDiffusionError as error:  # a symbolic link, which is removed without its target
        uri = files.join(folder, f"{info.sha256}.parquet")
        return Damage(uri=uri, problem=error.problem, forget=uri, below=folder)
    digest, size = hashlib.sha256(), 0
    try:
        for block in _blocks(uri):
            digest.update(block)
            size += len(block)
    except FileNotFoundError:
        return Damage(uri=uri, problem="missing", forget=uri, below=folder)
    if size != info.bytes:
        return Damage(uri=uri, problem=f"has {size} bytes instead of {info.bytes}", forget=uri, below=folder)
    if digest.hexdigest() != info.sha256:
        return Damage(uri=uri, problem="its SHA-256 is not its name", forget=uri, below=folder)
    return None


def _blocks(uri: str) -> Iterator[bytes]:
    fs, path = files.filesystem(uri)
    with files.naming(uri, "reading"), fs.open(path, "rb", block_size=BLOCK_BYTES) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _record(ledger: Ledger, unit_id: str) -> Damage | None:
    uri = files.join(ledger.folder_uri, f"{unit_id}.json")
    try:
        ledger.get(unit_id)
    except AltDiffusionError as error:
        return Damage(uri=uri, problem=error.problem, forget=uri, below=ledger.folder_uri)
    return None
