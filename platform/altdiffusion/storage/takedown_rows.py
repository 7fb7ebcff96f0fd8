"""The rows that a takedown found, kept as hashes: where they were, so that a later question about them has an answer.

    <lake>/takedowns/<sha256>.rows.parquet    TAKEN rows, named by the file's SHA-256; never rewritten

No link, caption or image is kept. A list is compared with these rows as `holdings.search` compares it with a dataset's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files, shards
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.holdings import Holdings
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.tombstones import (
    COLUMNS,
    FOLDER,
    REMEDY,
    Ids,
    Mask,
    Tombstones,
    digests_of,
    digests_of_hex,
    held,
    hosts_above,
)
from altdiffusion.urls import url_keys

SUFFIX = ".rows.parquet"
TAKEN = pa.schema(
    [
        pa.field("version", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.int64()),
        pa.field("link", pa.binary()),
        pa.field("final_link", pa.binary()),
        pa.field("hosts", pa.list_(pa.binary())),
        pa.field("final_hosts", pa.list_(pa.binary())),
        pa.field("image", pa.binary()),
    ]
)
"""One row per row of a version. SHA-256 digests of 32 bytes: of links in their one form, of each link's host and the
domains above it, and of the image; null where the version does not state it."""


def write_rows(lake: Lake, holdings: Holdings) -> str:
    """Keep the accepted rows that were found, in every version of a lake, and return the name of the file."""
    tables = [TAKEN.empty_table()]
    for version in holdings.versions:
        for index, rows in holdings.readable(version):
            folder = files.join(version.folder_uri, "shards")
            columns = [name for name in COLUMNS if name in version.schema_names]
            found = read_columns(folder, version.shards[index], columns).take(pa.array(rows)) if columns else None
            tables.append(_taken(str(version.ref), rows + version.shard_starts[index], found))
    data = shards.encode(pa.concat_tables(tables), row_group_rows=shards.NARROW_GROUP_ROWS)
    name = f"{files.sha256_hex(data)}{SUFFIX}"
    uri = files.within(lake.uri, FOLDER, name)
    if not files.exists(uri):
        files.write_atomic(uri, data)
    return name


def _taken(ref: str, rows: Ids, found: pa.Table | None) -> pa.Table:
    count = len(rows)
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in TAKEN}
    columns |= {"version": pa.array([ref] * count, pa.string()), "row": pa.array(rows)}
    names = [] if found is None else found.column_names
    if found is not None and "sample_id" in names:
        columns["sample_id"] = found["sample_id"]
    if found is not None and "image_sha256" in names:
        columns["image"] = _binary(digests_of_hex(found["image_sha256"].to_pylist()))
    for name, link, hosts in (("url", "link", "hosts"), ("final_url", "final_link", "final_hosts")):
        if found is not None and name in names:
            keys = url_keys(found[name])
            columns[link] = _binary(digests_of(keys.to_pylist()))
            columns[hosts] = pa.array(
                [[_whole(one) for one in digests_of(above)] for above in hosts_above(keys)], pa.list_(pa.binary())
            )
    return pa.table([columns[field.name] for field in TAKEN], schema=TAKEN)


def _whole(digest: bytes) -> bytes:
    return bytes(digest).ljust(32, b"\0")


def _binary(digests: Any) -> pa.Array:
    """Return digests as binary, null where there is none."""
    return pa.array([_whole(digest) if digest else None for digest in digests.tolist()], pa.binary())


def read_rows(lake_uri: str, name: str) -> pa.Table:
    """Return the TAKEN rows of one file.

    Raises:
        AltDiffusionError: it is missing or damaged.
    """
    uri = files.within(lake_uri, FOLDER, name)
    try:
        data = files.read_bytes(uri)
        if files.sha256_hex(data) != name.removesuffix(SUFFIX):
            raise AltDiffusionError(f"rows of a takedown {uri}", "are damaged: their SHA-256 is not their name", REMEDY)
        return pq.read_table(pa.BufferReader(data)).cast(TAKEN)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"rows of a takedown {uri}", "are missing", REMEDY) from error
    except UNREADABLE as error:
        raise AltDiffusionError(f"rows of a takedown {uri}", f"are damaged: {first_line(error)}", REMEDY) from error


def listed_rows(tables: Sequence[pa.Table], listed: Tombstones) -> pa.Table:
    """Return those of some TAKEN rows that a list names, each row of a version once.

    Args:
        listed: the entries of the list alone; what they name in rows that do not state a link or an image is found
            here, by the ids of the rows that do.
    """
    table = pa.concat_tables([TAKEN.empty_table(), *tables]).combine_chunks()
    ids = np.asarray(pc.fill_null(table["sample_id"], 0).to_numpy(), np.int64)
    valid = np.asarray(table["sample_id"].is_valid().to_numpy(), bool)
    by_link = _by(table, "link", "hosts", listed)
    by_final = _by(table, "final_link", "final_hosts", listed)
    by_image = held(listed.images, _digests(table["image"]))
    found = (held(listed.sample_ids, ids) & valid) | by_link | by_final | by_image
    for mask, column in ((by_link, "link"), (by_final, "final_link"), (by_image, "image")):
        lacking = np.asarray(table[column].is_null().to_numpy(), bool)
        found |= held(np.unique(ids[mask & valid]), ids) & valid & lacking
    rows = table.filter(pa.array(found))
    first = rows.append_column("place", pa.array(np.arange(rows.num_rows)))
    places = first.group_by(["version", "row"]).aggregate([("place", "min")])["place_min"]
    return rows.take(pa.array(np.sort(places.to_numpy())))


def _by(table: pa.Table, link: str, hosts: str, listed: Tombstones) -> Mask:
    found = held(listed.links, _digests(table[link]))
    if len(listed.domains) and table.num_rows:
        flat = pc.list_flatten(table[hosts])
        rows = pc.list_parent_indices(table[hosts]).to_numpy()
        found[rows[held(listed.domains, _digests(flat))]] = True
    return found


def _digests(column: pa.ChunkedArray) -> Any:
    return np.array([value or b"" for value in column.to_pylist()], "S32")
