"""Tombstones: what was taken down from a lake, so that it never enters a shard of it again.

    <lake>/takedowns/<sha256>.tombstones.parquet    TOMBSTONES rows, named by the file's SHA-256; never rewritten

A tombstone is a row's id, the id of a row that an image or a link came by, or the SHA-256 of a link (in the one form
that `urls.url_keys` returns), of a domain, or of an image's bytes. No link, caption or image is kept. All files of the
folder count together. Whatever writes accepted rows of a dataset asks `read_tombstones` first
(`execution.range_work.finish_unit`, `storage.cleansing`); in a lake without takedowns that is one listing of a folder
that does not exist.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files, shards
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.urls import url_keys

FOLDER = "takedowns"
"""Folder of a lake that holds the tombstones and the records of takedowns."""
SUFFIX = ".tombstones.parquet"
TOMBSTONES = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sample_id", pa.int64()),
        pa.field("sha256", pa.binary()),
    ]
)
"""`sample_id` for the kinds of ids; the digest, 32 bytes, for the kinds `link`, `domain` and `image`."""
COLUMNS = ("sample_id", "url", "final_url", "image_sha256")
"""Columns by which a tombstone can name a row."""
_IDS = ("id", "id_of_image", "id_of_final_url")
_DIGESTS = ("link", "domain", "image")
_HOST = r"^(?:[^/?@]*@)?(?P<host>\[[^\]]*\]|[^/?:]*)"
REMEDY = "restore it from a copy of the lake; without it, what was taken down could come back"

Digests = npt.NDArray[np.bytes_]
"""SHA-256 digests as S32, ascending where they form a set. NumPy drops zeros at their end, on both sides alike."""
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def _no_ids() -> Ids:
    return np.zeros(0, np.int64)


def _no_digests() -> Digests:
    return np.zeros(0, "S32")


@dataclass(frozen=True, kw_only=True)
class Tombstones:
    """A set of tombstones, sorted, so that a column is looked up at once."""

    sample_ids: Ids = field(default_factory=_no_ids)
    """Rows by id, wherever they are."""
    of_images: Ids = field(default_factory=_no_ids)
    """Rows whose image was taken down, for tables that do not state their images."""
    of_final_urls: Ids = field(default_factory=_no_ids)
    """Rows whose link was redirected to one that was taken down, for tables that do not state that link."""
    links: Digests = field(default_factory=_no_digests)
    domains: Digests = field(default_factory=_no_digests)
    images: Digests = field(default_factory=_no_digests)

    def __len__(self) -> int:
        return sum(
            map(len, (self.sample_ids, self.of_images, self.of_final_urls, self.links, self.domains, self.images))
        )

    def names(self, table: pa.Table) -> Mask:
        """Return which rows of a table are named, bool [N], by those of COLUMNS that the table has."""
        found = np.zeros(table.num_rows, bool)
        if not len(self) or not table.num_rows:
            return found
        if "sample_id" in table.column_names:
            found |= self._holds_ids(table)
        if "image_sha256" in table.column_names:
            found |= self.holds_images(table["image_sha256"])
        for name in ("url", "final_url"):
            if name in table.column_names:
                found |= self._holds_links(table[name])
        return found

    def _holds_ids(self, table: pa.Table) -> Mask:
        column, found = table["sample_id"], np.zeros(table.num_rows, bool)
        ids = np.asarray(pc.fill_null(column, 0).to_numpy(), np.int64)
        for named, stated in (
            (self.sample_ids, ""),
            (self.of_images, "image_sha256"),
            (self.of_final_urls, "final_url"),
        ):
            if len(named) and stated not in table.column_names:
                found |= held(named, ids)
        found &= np.asarray(column.is_valid().to_numpy(), bool)
        return found

    def holds_images(self, sha256: pa.Array | pa.ChunkedArray) -> Mask:
        """Return which images are named, bool [N], by the SHA-256 (hex) of their bytes."""
        if not len(self.images):
            return np.zeros(len(sha256), bool)
        return held(self.images, digests_of_hex(sha256.to_pylist()))

    def _holds_links(self, urls: pa.ChunkedArray) -> Mask:
        if not len(self.links) and not len(self.domains):
            return np.zeros(len(urls), bool)
        keys = url_keys(urls)
        found = held(self.links, digests_of(keys.to_pylist())) if len(self.links) else np.zeros(len(keys), bool)
        if len(self.domains):
            hosts: Any = _hosts(keys).dictionary_encode()
            listed = [held(self.domains, digests_of(_above(host))).any() for host in hosts.dictionary.to_pylist()]
            places = pc.fill_null(hosts.indices, len(listed)).to_numpy(zero_copy_only=False)
            found |= np.array([*listed, False], bool)[places]
        return found


EMPTY = Tombstones()


def digests_of(texts: Iterable[str | None]) -> Digests:
    """Return the SHA-256 of each text, S32 [N]; null is hashed like no text."""
    return np.array([b"" if text is None else hashlib.sha256(text.encode()).digest() for text in texts], "S32")


def digests_of_hex(texts: Sequence[str | None]) -> Digests:
    """Return digests that are given in hex, S32 [N]; what is not a digest is equal to none."""

    def digest(text: str | None) -> bytes:
        try:
            return bytes.fromhex(text) if text and len(text) == 64 else b""
        except ValueError:
            return b""

    return np.array([digest(text) for text in texts], "S32")


def _hosts(keys: pa.Array) -> Any:
    return pc.struct_field(pc.extract_regex(keys, _HOST), "host")


def hosts_above(keys: pa.Array) -> list[list[str]]:
    """Return the host of each link and every domain above it, by the link's key; none for null."""
    return [[] if host is None else _above(host) for host in _hosts(keys).to_pylist()]


def _above(host: str) -> list[str]:
    parts = host.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def held(values: npt.NDArray[Any], asked: npt.NDArray[Any]) -> Mask:
    """Return which of `asked` are in `values`, which are ascending."""
    if not len(values):
        return np.zeros(len(asked), bool)
    at = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.asarray(values[at] == asked, bool)


def covers(tombstones: Tombstones, listed: Tombstones) -> bool:
    """Return whether tombstones have every id, link, domain and image of a list."""
    pairs = (
        (tombstones.sample_ids, listed.sample_ids),
        (tombstones.links, listed.links),
        (tombstones.domains, listed.domains),
        (tombstones.images, listed.images),
    )
    return all(bool(held(values, asked).all()) for values, asked in pairs)


def add_tombstones(
    lake_uri: str,
    *,
    sample_ids: Ids,
    of_images: Ids,
    of_final_urls: Ids,
    links: Sequence[str] = (),
    domains: Sequence[str] = (),
    images: Sequence[str] = (),
) -> str:
    """Keep tombstones in a lake for ever, and return the name of their file; equal ones are the same file.

    Args:
        sample_ids: rows by id.
        of_images: ids of the rows that have such an image.
        of_final_urls: ids of the rows whose link was redirected to such a link.
        links: keys of links (`urls.url_keys`).
        domains: names of hosts in lower case; each covers all below it.
        images: SHA-256 (hex) of the bytes of images.
    """
    parts = [TOMBSTONES.empty_table()]
    for kind, ids in zip(_IDS, (sample_ids, of_images, of_final_urls), strict=True):
        parts.append(_part(kind, sample_id=pa.array(np.unique(ids), pa.int64())))
    for kind, digests in zip(_DIGESTS, (digests_of(links), digests_of(domains), digests_of_hex(images)), strict=True):
        whole = [digest.ljust(32, b"\0") for digest in np.unique(digests).tolist()]
        parts.append(_part(kind, sha256=pa.array(whole, pa.binary())))
    table = pa.concat_tables(parts)
    data = shards.encode(table, row_group_rows=shards.NARROW_GROUP_ROWS)
    name = f"{files.sha256_hex(data)}{SUFFIX}"
    uri = files.within(lake_uri, FOLDER, name)
    if not files.exists(uri):
        files.write_atomic(uri, data)
    return name


def _part(kind: str, *, sample_id: pa.Array | None = None, sha256: pa.Array | None = None) -> pa.Table:
    """Return the TOMBSTONES rows of one kind, which has either ids or digests."""
    given = sample_id if sample_id is not None else sha256
    count = 0 if given is None else len(given)
    columns = [
        pa.array([kind] * count, pa.string()),
        pa.nulls(count, pa.int64()) if sample_id is None else sample_id,
        pa.nulls(count, pa.binary()) if sha256 is None else sha256,
    ]
    return pa.table(columns, schema=TOMBSTONES)


def read_tombstones(lake_uri: str) -> Tombstones:
    """Return all tombstones of a lake. What has been read stays in memory until a takedown adds to it.

    Raises:
        AltDiffusionError: a file of them is damaged.
    """
    names = tombstone_names(lake_uri)
    return _read(lake_uri, names) if names else EMPTY


def tombstone_names(lake_uri: str) -> tuple[str, ...]:
    """Return the names of a lake's files of tombstones, from one listing."""
    return tuple(name for name in files.list_names(files.join(lake_uri, FOLDER)) if name.endswith(SUFFIX))


def read_file(lake_uri: str, name: str) -> Tombstones:
    """Return the tombstones of one file.

    Raises:
        AltDiffusionError: it is missing or damaged.
    """
    return _read(lake_uri, (name,))


@functools.lru_cache(maxsize=8)
def _read(lake_uri: str, names: tuple[str, ...]) -> Tombstones:
    tables = [_table(lake_uri, name) for name in names]
    table = pa.concat_tables([TOMBSTONES.empty_table(), *tables])

    def of_kind(kind: str) -> pa.Table:
        return table.filter(pc.equal(table["kind"], kind))

    ids = [np.unique(of_kind(kind)["sample_id"].to_numpy()) for kind in _IDS]
    digests = [np.unique(_fixed(of_kind(kind)["sha256"])) for kind in _DIGESTS]
    return Tombstones(
        sample_ids=ids[0], of_images=ids[1], of_final_urls=ids[2],
        links=digests[0], domains=digests[1], images=digests[2],
    )  # fmt: skip


def _fixed(column: pa.ChunkedArray) -> Digests:
    """Return a column of digests, of 32 bytes each, as S32 without a pass over its values."""
    parts = [np.zeros(0, "S32")]
    for chunk in column.chunks:
        fixed = chunk.cast(pa.binary(32))
        values = fixed.buffers()[1]
        parts.append(np.frombuffer(values, "S32")[fixed.offset : fixed.offset + len(fixed)] if len(fixed) else parts[0])
    return np.concatenate(parts)


def _table(lake_uri: str, name: str) -> pa.Table:
    uri = files.within(lake_uri, FOLDER, name)
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"tombstones {uri}", "are missing", REMEDY) from error
    if files.sha256_hex(data) != name.removesuffix(SUFFIX):
        raise AltDiffusionError(f"tombstones {uri}", "are damaged: their SHA-256 is not their name", REMEDY)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except UNREADABLE as error:
        raise AltDiffusionError(f"tombstones {uri}", f"are damaged: {first_line(error)}", REMEDY) from error
    if not table.schema.equals(TOMBSTONES):
        raise AltDiffusionError(f"tombstones {uri}", "are damaged: their columns are not those of tombstones", REMEDY)
    is_id = pc.is_in(table["kind"], value_set=pa.array(_IDS))
    whole = pc.if_else(is_id, table["sample_id"].is_valid(), pc.equal(pc.binary_length(table["sha256"]), 32))
    if table.num_rows and not pc.all(pc.fill_null(whole, False)).as_py():
        raise AltDiffusionError(f"tombstones {uri}", "are damaged: an id or a digest is missing or cut", REMEDY)
    return table
