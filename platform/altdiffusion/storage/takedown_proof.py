"""Proof by brute force that a lake holds nothing that was taken down.

Every Parquet file below the datasets' folders is read, whatever names it: shards and rejects of all versions, those of
units that no manifest names, and the spill files of unfinished units. Nothing that was found earlier is trusted. Judges
hold no rows, and are compared by the rows that they were trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.cleansing import linked
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.judges import TaughtJudge, judges_of
from altdiffusion.storage.tombstones import COLUMNS, Tombstones, read_tombstones

THREADS = 16
FOLDERS = ("shards", "rejects", "spill")


@dataclass(frozen=True, kw_only=True)
class HeldFile:
    """A file that holds rows that were taken down."""

    uri: str
    rows: int

    def __str__(self) -> str:
        return f"{self.uri}: holds {self.rows:,} row{'s' * (self.rows != 1)} that were taken down"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What reading all files of a lake has shown."""

    tombstones: int
    files: int
    rows: int
    held: tuple[HeldFile, ...]
    unreadable: tuple[AltDiffusionError, ...]
    judges: tuple[TaughtJudge, ...]
    """Kept judges that were trained on such rows, or may have been."""

    @property
    def is_clean(self) -> bool:
        """Whether every file was read, none holds such a row, and no judge was trained on one."""
        return not self.held and not self.unreadable and not self.judges


def prove(lake: Lake) -> Proof:
    """Read every Parquet file of a lake's datasets, and return which of them hold rows that were taken down.

    Memory holds the columns that identify the rows of `THREADS` files.

    Raises:
        AltDiffusionError: there is no such lake, or the tombstones are damaged.
    """
    if not files.exists(lake.uri):
        raise AltDiffusionError(
            f"lake {lake.uri}", "does not exist", "give the address that the jobs write to (--lake)"
        )
    tombstones = read_tombstones(lake.uri)
    count = rows = 0
    held: list[HeldFile] = []
    unreadable: list[AltDiffusionError] = []
    with ThreadPoolExecutor(THREADS) as pool:
        tasks = _parquet_files(lake)
        while batch := list(islice(tasks, 64 * THREADS)):
            for uri, found in zip(batch, pool.map(lambda uri: rows_taken_down(uri, tombstones), batch), strict=True):
                if isinstance(found, AltDiffusionError):
                    unreadable.append(found)
                    continue
                count, rows = count + 1, rows + found[0]
                held += [HeldFile(uri=uri, rows=found[1])] if found[1] else []
    return Proof(
        tombstones=len(tombstones),
        files=count,
        rows=rows,
        held=tuple(held),
        unreadable=tuple(unreadable),
        judges=tuple(judges_of(lake.uri, tombstones)),
    )


def _parquet_files(lake: Lake) -> Iterator[str]:
    for name in files.list_folders(files.join(lake.uri, "datasets")):
        for role in FOLDERS:
            folder = files.join(lake.uri, "datasets", name, role)
            yield from (files.join(folder, file) for file in files.list_names(folder) if file.endswith(".parquet"))


def rows_taken_down(uri: str, tombstones: Tombstones) -> tuple[int, int] | AltDiffusionError:
    """Return the number of rows of a file, and of those that were taken down; a rejected one counts with its link."""
    fs, path = files.filesystem(uri)
    try:
        with files.naming(uri, "reading"), fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            columns = [name for name in COLUMNS if name in parquet.schema_arrow.names]
            table = parquet.read(columns=columns) if columns else None
            count = int(parquet.metadata.num_rows)
    except FileNotFoundError:  # removed meanwhile
        return 0, 0
    except UNREADABLE as error:
        return AltDiffusionError(f"file {uri}", f"cannot be read ({first_line(error)})", "remove it or restore it")
    except AltDiffusionError as error:
        return error
    if table is None:
        return count, 0
    listed = linked(table, tombstones) if "/rejects/" in uri else tombstones.names(table)
    return count, int(np.count_nonzero(listed))
