"""Files of a lake's datasets that no manifest names: what killed jobs and replaced units have left behind.

What a running job may need is not garbage. It needs its finished units, whose records name shards that no manifest
names yet; the spill files of its unfinished units; and temporary files that are being written. So:

- a file is garbage only if it is older than a limit (a day), whatever names it;
- a file that a unit's record names, and a spill file, is garbage only if nothing at all was written to the dataset
  within that limit: a running job records units and writes spill files all the time;
- a dataset with a damaged manifest has no garbage, because what that manifest names is not known.

If the limit was too short for a job after all, its units are made again; no version loses a file.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import ROLES, Dataset, Lake
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.ledger_pages import read_ledger
from altdiffusion.storage.takedown_proof import rows_taken_down
from altdiffusion.storage.tombstones import Tombstones

DAY_S = 86_400.0
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file that no manifest names."""

    uri: str
    bytes: int
    written: float
    """Time of its last change, seconds since 1970; infinity where the storage does not state it."""
    records: tuple[tuple[Ledger, str], ...] = ()
    """Ledgers and ids of the units whose records name it."""
    is_spill: bool = False

    def remove(self, dataset: Dataset) -> None:
        """Delete the file, and before that the records that name it, so that no record names what is not there."""
        for ledger, unit_id in self.records:
            ledger.forget(unit_id)
        files.remove_tree(self.uri, below=dataset.folder_uri)


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The garbage of one dataset."""

    dataset: Dataset
    files: tuple[Leftover, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def remove(self) -> None:
        """Delete the files."""
        for file in self.files:
            file.remove(self.dataset)


def find_garbage(
    lake: Lake, older_than_s: float = DAY_S, *, now: float | None = None
) -> tuple[list[Garbage], list[AltDiffusionError]]:
    """Return the garbage of each dataset that has some, and what kept other datasets from being looked at.

    Args:
        older_than_s: age in seconds from which a file may be garbage.
        now: seconds since 1970; the present time by default.

    Raises:
        AltDiffusionError: there is no such lake.
    """
    if not files.exists(lake.uri):
        raise AltDiffusionError(
            f"lake {lake.uri}", "does not exist", "give the address that the jobs write to (--lake)"
        )
    before = (time.time() if now is None else now) - older_than_s
    found: list[Garbage] = []
    wrong: list[AltDiffusionError] = []
    for name in lake.names():
        dataset = lake.dataset(name)
        try:
            garbage = _of_dataset(dataset, before)
        except AltDiffusionError as error:
            wrong.append(error)
            continue
        found += [garbage] if garbage.files else []
    return found, wrong


def _of_dataset(dataset: Dataset, before: float) -> Garbage:
    is_idle = _last_written(dataset) < before
    chosen = [
        file
        for file in leftovers(dataset)
        if file.written < before and (is_idle or not (file.records or file.is_spill))
    ]
    return Garbage(dataset=dataset, files=tuple(chosen))


def leftovers(dataset: Dataset) -> list[Leftover]:
    """Return all files of a dataset that no manifest names, of any age.

    Raises:
        AltDiffusionError: a manifest, a table of shards or a unit's record is damaged.
    """
    # The listing comes first: what is written after it is not in it, and what is published after it is named below.
    listed = [(role, entry) for role in (*ROLES, "spill") for entry in _entries(dataset, role)]
    recorded = _recorded(dataset)
    named = {
        (role, info.sha256)
        for version in (dataset.open(digest) for digest in dataset.digests())
        for role in ROLES
        for info in version.infos(role)
    }
    found = []
    for role, (name, size, written) in listed:
        key = (role, name.removesuffix(".parquet"))
        if key in named:
            continue
        found.append(
            Leftover(
                uri=files.join(dataset.folder_uri, role, name),
                bytes=size,
                written=written,
                records=tuple(recorded.get(key, ())),
                is_spill=role == "spill",
            )
        )
    return found


def remove_taken_down(dataset: Dataset, tombstones: Tombstones) -> list[Leftover]:
    """Delete the files that no manifest names and that hold rows that were taken down, and return them.

    No job may write to the dataset meanwhile.
    """
    if not len(tombstones):
        return []
    held = [file for file in leftovers(dataset) if holds_taken_down(file, tombstones)]
    for file in held:
        file.remove(dataset)
    return held


def holds_taken_down(file: Leftover, tombstones: Tombstones) -> bool:
    """Return whether a file holds rows that were taken down; one that cannot be read may."""
    rows = rows_taken_down(file.uri, tombstones)
    return isinstance(rows, AltDiffusionError) or rows[1] > 0


def _recorded(dataset: Dataset) -> Mapping[tuple[str, str], Sequence[tuple[Ledger, str]]]:
    """Return the units whose records name a file, by the file's folder and SHA-256."""
    found: dict[tuple[str, str], list[tuple[Ledger, str]]] = {}
    for fingerprint in files.list_folders(files.join(dataset.folder_uri, "ledger")):
        ledger = dataset.ledger(fingerprint)
        for record in read_ledger(ledger).all():
            for role, infos in (("shards", record.shards), ("rejects", record.rejects)):
                for info in infos:
                    found.setdefault((role, info.sha256), []).append((ledger, record.unit_id))
    return found


def _last_written(dataset: Dataset) -> float:
    """Return when anything was last written to a dataset; infinity where the storage does not state it."""
    folders = [*ROLES, "spill", "versions"]
    ledgers = files.list_folders(files.join(dataset.folder_uri, "ledger"))
    folders += [f"ledger/{fingerprint}" for fingerprint in ledgers]
    return max((entry[2] for folder in folders for entry in _entries(dataset, folder)), default=0.0)


def _entries(dataset: Dataset, folder: str) -> Iterator[tuple[str, int, float]]:
    """Yield name, bytes and time of the files in a folder, temporary ones of killed writers among them."""
    for entry in files.list_details(files.join(dataset.folder_uri, folder)):
        name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
        if entry["type"] == "file" and (name.startswith(_TEMPORARY) or not name.startswith(".")):
            yield name, int(entry["size"] or 0), _written(entry)


def _written(entry: Mapping[str, object]) -> float:
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(key)
        if isinstance(value, datetime.datetime):
            return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return float("inf")
