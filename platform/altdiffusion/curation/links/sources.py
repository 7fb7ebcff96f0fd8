"""Scanned sources: their parts and how these are cut into units.

Planning reads footers only, each once, and keeps little of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from altdiffusion.curation.config import SelectConfig, SourceConfig
from altdiffusion.curation.links.filters import columns_of, number_filters
from altdiffusion.curation.links.partitions import Partition, partition_of, with_partition
from altdiffusion.curation.links.reader import Footer, contradictory, fetch_footer, parse_footer
from altdiffusion.curation.links.source_columns import SCORES, SIZES, resolve_columns
from altdiffusion.curation.links.text_parts import TextIndex, index_text, is_text
from altdiffusion.curation.own.sample import is_image_name
from altdiffusion.curation.parts import Found, find_partitioned
from altdiffusion.curation.web.blocklist import source_blocklist
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.native_aborts import abort_means

OWN_ROWS = 1_000_000
"""A larger set is not a demo: without a blocklist, LAION's shapes without a set's name are refused for it."""
_AHEAD = 8
"""Footers that are fetched at the same time. They are parsed one by one and in one thread: a parsed footer takes about
ten times its bytes, and what the C library's allocator held for several threads is not given back."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One file of a source: a Parquet file's footer states all that planning needs."""

    uri: str
    name: str
    digest: str
    """SHA-256 of size and footer bytes (row counts, offsets, statistics): the identity without reading the rows. Of a
    text part, that of all its lines."""
    partition: Partition = field(default_factory=dict)
    """Columns whose values are in the names of its folders."""
    group_rows: npt.NDArray[np.int64]
    columns: frozenset[str] = frozenset()
    """Its columns, under our names."""
    bounded: frozenset[str] = frozenset()
    """The numbers among them whose footer has statistics."""

    @property
    def rows(self) -> int:
        return int(self.group_rows.sum())

    @property
    def identity(self) -> str:
        """The digest, with the columns of its folders where there are any."""
        if not self.partition:
            return self.digest
        return files.sha256_hex(files.canonical_json([self.digest, dict(self.partition)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceScan:
    """A scanned source: its parts in the order of their names, and its reference for manifests."""

    config: SourceConfig
    parts: tuple[Part, ...]

    @property
    def ref(self) -> Ref:
        entries = [[part.name, part.identity] for part in self.parts]
        return Ref("source", self.config.name, files.sha256_hex(files.canonical_json(entries)))

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def units(self) -> int:
        """Number of units, without making them."""
        return sum(len(list(_ranges(part.group_rows, self.config.rows_per_unit))) for part in self.parts)


def scan_source(config: SourceConfig, select: SelectConfig | None = None) -> SourceScan:
    """Read the footers of all parts, and the blocklist.

    Args:
        select: the filters that will be used: each needs its column in every part.

    Raises:
        AltDiffusionError: no file matches, a part is unreadable or truncated, lacks a column, there is no row, or
            the blocklist is missing or not what such a source needs.
    """
    source_blocklist(config)
    fs, paths = find_partitioned(config.uri, f"source {config.name}")
    what = f"source {config.name} ({config.uri})"
    scan = SourceScan(config=config, parts=tuple(_scan_parts(fs, paths, config)))
    if scan.rows == 0:
        raise AltDiffusionError(what, f"has no rows in its {len(scan.parts)} parts", "give a source with links in it")
    if scan.rows > OWN_ROWS and not config.shape.published and config.blocklist is None:
        raise AltDiffusionError(
            what,
            f"has {scan.rows:,} rows and no blocklist; preset {config.preset} is for small private sets",
            "name the published set it is in `preset`, and give its blocklist",
        )
    if select is not None:
        _check_filters(scan, select)
    return scan


def _scan_parts(fs: Any, paths: Sequence[Found], config: SourceConfig) -> Iterator[Part]:
    def fetch(found: Found) -> tuple[int, bytes] | TextIndex:
        uri = fs.unstrip_protocol(found.path)
        if is_text(uri):
            return index_text(uri)
        if is_image_name(uri):
            problem = "is an image, and a source of links is a list of addresses"
            raise AltDiffusionError(
                f"source part {uri}", problem, "import a folder of images as images (--kind images)"
            )
        with fs.open(found.path, "rb") as file:
            return fetch_footer(file, uri)

    coming: deque[Future[tuple[int, bytes] | TextIndex]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        try:
            for place, found in enumerate(paths):
                coming.extend(pool.submit(fetch, later) for later in paths[place + len(coming) : place + _AHEAD])
                come = coming.popleft().result()
                uri, name = fs.unstrip_protocol(found.path), found.path.rsplit("/", 1)[-1]
                if isinstance(come, TextIndex):
                    yield _text_part(uri, name, come, config)
                else:
                    with abort_means(contradictory(uri)):
                        part = _part(uri, name, parse_footer(*come, uri), config, partition_of(found.folders))
                    yield part
        finally:
            pool.shutdown(cancel_futures=True)


def _text_part(uri: str, name: str, index: TextIndex, config: SourceConfig) -> Part:
    columns = resolve_columns(index.schema, config, uri)
    return Part(uri=uri, name=name, digest=index.digest, group_rows=index.block_rows, columns=frozenset(columns))


def _part(uri: str, name: str, footer: Footer, config: SourceConfig, partition: Partition) -> Part:
    columns = resolve_columns(with_partition(footer.schema, partition), config, uri)
    return Part(
        uri=uri,
        name=name,
        digest=footer.digest,
        partition=partition,
        group_rows=footer.group_rows,
        columns=frozenset(columns),
        bounded=frozenset(ours for ours in (*SIZES, *SCORES) if _bounded(footer, columns.get(ours))),
    )


def _bounded(footer: Footer, column: str | None) -> bool:
    """Return whether the first row group has statistics of a column: one writer makes all of a part."""
    if column is None or column not in footer.places:  # there are none without a row group
        return False
    statistics = footer.metadata.row_group(0).column(footer.places[column]).statistics
    return statistics is not None and (statistics.has_min_max or statistics.has_null_count)


def _check_filters(scan: SourceScan, select: SelectConfig) -> None:
    """Refuse a filter without its column: it would drop every row, or, if it keeps nulls, none."""
    for part in scan.parts:
        missing = [name for name in columns_of(number_filters(select)) if name not in part.columns]
        if missing:
            raise AltDiffusionError(
                f"source part {part.uri}",
                f"has no column for {', '.join(missing)}, which the filters of source {scan.config.name} need",
                "set these filters to null, or map the column in the source's `columns`",
            )


def describe_sources(scans: Sequence[SourceScan]) -> list[str]:
    """Return what was found in each source, one line each, for the plan."""
    return [_described(scan) for scan in scans]


def _described(scan: SourceScan) -> str:
    """Return what was found in a source, in one line."""
    groups = np.concatenate([part.group_rows for part in scan.parts])
    bounded = frozenset.intersection(*(part.bounded for part in scan.parts))
    shown = ", ".join(name for name in (*SIZES, *SCORES) if name in bounded)
    cut = int(groups.max()) > scan.config.rows_per_unit
    return (
        f"source {scan.config.name}: {scan.rows:,} rows in {len(scan.parts):,} parts and {len(groups):,} row groups, "
        f"{scan.units:,} units; statistics: {shown or 'none'}"
        + (f"; row groups of {groups.max():,} rows are read once for each unit in them" if cut else "")
    )


def plan_sources(scans: Sequence[SourceScan]) -> list[Unit]:
    """Return the units of all sources, one source after the other: a duplicate's survivor is chosen in this order.

    A unit is neighbouring row groups of up to `rows_per_unit` rows; a larger row group is cut up.
    """
    units: list[Unit] = []
    for scan in scans:
        config = scan.config
        for part in scan.parts:
            for start, stop in _ranges(part.group_rows, config.rows_per_unit):
                payload = {"source": config.name, "uri": part.uri, "part": part.digest, "start": start, "stop": stop}
                if part.partition:
                    payload["partition"] = dict(part.partition)
                units.append(new_unit(len(units), [part.identity, start, stop], payload, name=config.name))
    return units


def _ranges(group_rows: Sequence[int] | npt.NDArray[np.int64], limit: int) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for rows in np.asarray(group_rows).tolist():
        if stop > start and stop + rows - start > limit:
            yield start, stop
            start = stop
        stop += rows
        while stop - start > limit:
            yield start, start + limit
            start += limit
    if stop > start:
        yield start, stop
