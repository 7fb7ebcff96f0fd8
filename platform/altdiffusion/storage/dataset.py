"""Datasets: a named series of immutable versions; a version's digest is the SHA-256 of its manifest.

    <lake>/datasets/<name>/shards/<sha256>.parquet            content-addressed, never rewritten
    <lake>/datasets/<name>/rejects/<sha256>.parquet           dropped rows with a reason
    <lake>/datasets/<name>/ledger/<fingerprint>/<unit>.json   written after the unit's shards
    <lake>/datasets/<name>/spill/<unit>,<rows>,<sha256>.parquet   rows of an unfinished unit
    <lake>/datasets/<name>/versions/<digest>/                 made_by.json and shards.parquet, then manifest.json, which
                                                              completes the version
    <lake>/datasets/<name>/versions/<digest>/takedowns.json   the tombstones of which the version holds none
    <lake>/datasets/<name>/head.json                          the digest that the bare name means

The same inputs and config give the same digest, whatever was killed, retried, reordered or resized on the way.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import altdiffusion
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.records import REJECTS, SCHEMAS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files, shards
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.documents import DIGEST, Document, optional_document, parse_document, read_document
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.listing import list_marked
from altdiffusion.storage.shards import ROW_GROUP_ROWS, ShardInfo

FORMAT = "altdiffusion-dataset-2"
Role = Literal["shards", "rejects"]
ROLES: tuple[Role, ...] = get_args(Role)
"""The folders of a dataset's Parquet files: accepted and rejected rows."""
MADE_BY = "made_by.json"
"""File next to a manifest that names the pipeline step; no digest covers it, and older versions have none."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._\-]{0,99}")
_TABLE = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("row_group_rows", pa.int32(), nullable=False),
    ]
)


class Outcome:
    """What units have made together: sums, and their shards in the units' order. No record is kept.

    Args:
        records: in any order.
    """

    def __init__(self, records: Iterable[UnitRecord]) -> None:
        self.rows_in = self.rows = 0
        languages, reasons, tally = Counter[str](), Counter[str](), Counter[str]()
        self._columns: dict[str, list[Any]] = {name: [] for name in ("index", *_TABLE.names)}
        for record in records:
            self.rows_in += record.rows_in
            self.rows += record.rows_out
            languages.update(record.rows_by_language)
            reasons.update(record.rejects_by_reason)
            tally.update(record.tally)
            self._list(record.index, "shard", record.shards)
            self._list(record.index, "reject", record.rejects)
        self.rows_by_language, self.rejects_by_reason, self.tally = (
            dict(sorted(counts.items())) for counts in (languages, reasons, tally)
        )

    def _list(self, index: int, role: str, infos: Sequence[ShardInfo]) -> None:
        for info in infos:
            row = (index, role, info.sha256, info.rows, info.bytes, info.row_group_rows)
            for column, value in zip(self._columns.values(), row, strict=True):
                column.append(value)

    def table(self) -> pa.Table:
        """Return the table of shards (`_TABLE`): the accepted ones, then the rejected ones, each by unit."""
        index = np.array(self._columns["index"], np.int64)
        is_reject = np.array([role == "reject" for role in self._columns["role"]], bool)
        columns = [pa.array(self._columns[field.name], field.type) for field in _TABLE]
        order = np.lexsort((index, is_reject))  # stable: a unit's shards stay in their order
        return pa.Table.from_arrays(columns, schema=_TABLE).take(pa.array(order))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a version. The digest covers its canonical JSON, which holds no time, host, path or run."""

    format: str
    name: str
    kind: Kind
    parents: tuple[str, ...]
    config: Mapping[str, Any]
    fingerprint: str
    code_version: str
    schema: tuple[str, ...]
    rows: int
    rows_by_language: Mapping[str, int]
    rejects_by_reason: Mapping[str, int]
    tally: Mapping[str, int]
    shards_table_sha256: str

    def canonical(self) -> bytes:
        return files.canonical_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def of_document(cls, document: Document) -> Manifest:
        """Return the manifest that a file of a lake describes.

        Raises:
            AltDiffusionError: a value is not usable.
        """
        kind = document.text("kind")
        if kind not in SCHEMAS:
            raise document.wrong("kind", f"one of {', '.join(SCHEMAS)}")
        return cls(
            format=document.text("format"),
            name=document.text("name", _NAME, needed="a dataset name"),
            kind=kind,
            parents=document.refs("parents"),
            config=document.object("config").value,
            fingerprint=document.name("fingerprint"),
            code_version=document.text("code_version"),
            schema=document.texts("schema"),
            rows=document.count("rows"),
            rows_by_language=document.counts("rows_by_language"),
            rejects_by_reason=document.counts("rejects_by_reason"),
            tally=document.counts("tally"),
            shards_table_sha256=document.digest("shards_table_sha256"),
        )

    @functools.cached_property
    def digest(self) -> str:
        return files.sha256_hex(self.canonical())

    @property
    def parent_refs(self) -> tuple[Ref, ...]:
        return tuple(Ref.parse(parent) for parent in self.parents)


class Version:
    """One immutable version of a dataset, open for reading."""

    def __init__(self, folder_uri: str, manifest: Manifest) -> None:
        self.folder_uri = folder_uri  # the dataset's folder
        self.manifest = manifest

    @functools.cached_property
    def ref(self) -> Ref:
        return Ref("dataset", self.manifest.name, self.manifest.digest)

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def uri(self) -> str:
        """Folder of this version's manifest."""
        return files.within(self.folder_uri, "versions", self.ref.digest)

    @property
    def lake_uri(self) -> str:
        """URI of the lake that holds the version."""
        return self.folder_uri.removesuffix(f"/datasets/{self.manifest.name}")

    @functools.cached_property
    def made_by(self) -> str | None:
        """Name of the pipeline step that published the version, or "takedown"; None where no name was kept.

        The name is for people: it is not part of what the digest covers, so that nothing may be made from it.

        Raises:
            AltDiffusionError: the file does not hold a plain name.
        """
        document = optional_document(files.within(self.uri, MADE_BY))
        return None if document is None else document.name("pipeline_step")

    @functools.cached_property
    def table_uri(self) -> str:
        """URI of the table of shards."""
        return files.within(self.uri, "shards.parquet")

    @functools.cached_property
    def _table(self) -> pa.Table:
        return self._checked(files.read_many([self.table_uri])[0])

    def load_table(self, data: bytes | FileNotFoundError | AltDiffusionError) -> None:
        """Take the content of the table of shards as it was read along with others (`files.read_many`).

        Raises:
            AltDiffusionError: it could not be read, or is damaged.
        """
        self.__dict__["_table"] = self._checked(data)

    def _checked(self, data: bytes | FileNotFoundError | AltDiffusionError) -> pa.Table:
        uri = self.table_uri
        if isinstance(data, FileNotFoundError):
            raise AltDiffusionError(f"file {uri}", "is missing", shards.REMEDY) from data
        if isinstance(data, AltDiffusionError):
            raise data
        if files.sha256_hex(data) != self.manifest.shards_table_sha256:
            raise AltDiffusionError(f"file {uri}", "is damaged: its SHA-256 is not the manifest's", shards.REMEDY)
        return _checked_table(uri, data)

    def _of_role(self, role: str) -> tuple[ShardInfo, ...]:
        rows = self._table.to_pylist()
        return tuple(ShardInfo(**{k: v for k, v in row.items() if k != "role"}) for row in rows if row["role"] == role)

    def infos(self, role: Role) -> tuple[ShardInfo, ...]:
        """Return the shards of accepted or of rejected rows, in input order."""
        return self.shards if role == "shards" else self.rejects

    @functools.cached_property
    def shards(self) -> tuple[ShardInfo, ...]:
        """Shards of accepted rows, in input order."""
        return self._of_role("shard")

    @functools.cached_property
    def rejects(self) -> tuple[ShardInfo, ...]:
        """Shards of rejected rows, in input order."""
        return self._of_role("reject")

    @functools.cached_property
    def shard_starts(self) -> tuple[int, ...]:
        """Row number at which each shard starts, then the number of all rows."""
        starts = [0]
        for shard in self.shards:
            starts.append(starts[-1] + shard.rows)
        return tuple(starts)

    def shard_uri(self, index: int) -> str:
        """Return the URI of the Parquet file of shard `index`."""
        return shards.shard_uri(files.join(self.folder_uri, "shards"), self.shards[index].sha256)

    def read_shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one shard's rows after a check of its hash; columns that are newer than the shard are null."""
        folder = files.join(self.folder_uri, "shards")
        return shards.read_table(folder, self.shards[index].sha256, self._schema(columns))

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows shard by shard, in input order."""
        for index in range(len(self.shards)):
            yield self.read_shard(index, columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows at once, which is meant for small versions and few columns."""
        tables = list(self.iter_tables(columns))
        return pa.concat_tables(tables) if tables else self._schema(columns).empty_table()

    @property
    def schema_names(self) -> list[str]:
        """Names of the columns that rows of its kind have."""
        return list(SCHEMAS[self.manifest.kind].names)

    def read_rows(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return rows by their numbers, in that order, reading only the shards that hold them."""
        found: dict[int, dict[str, Any]] = {}
        for shard, (start, stop) in enumerate(itertools.pairwise(self.shard_starts)):
            inside = [row - start for row in rows if start <= row < stop]
            if inside:
                taken = self.read_shard(shard, columns).take(inside).to_pylist()
                found.update(zip((start + row for row in inside), taken, strict=True))
        return [found[row] for row in rows]

    def _schema(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = SCHEMAS[self.manifest.kind]
        return schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def iter_rejects(self) -> Iterator[pa.Table]:
        """Yield the rejected rows with their reasons, in input order."""
        for info in self.rejects:
            yield shards.read_table(files.join(self.folder_uri, "rejects"), info.sha256, REJECTS)


def _checked_table(uri: str, data: bytes) -> pa.Table:
    """Return the table of shards after a check of every value, since its names become paths."""

    def damaged(problem: str) -> AltDiffusionError:
        return AltDiffusionError(f"file {uri}", f"is damaged: {problem}", shards.REMEDY)

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except UNREADABLE as error:
        raise damaged(first_line(error)) from error
    if not table.schema.equals(_TABLE):
        raise damaged("its columns are not those of a table of shards")
    if any(column.null_count for column in table.columns):
        raise damaged("a value is missing")
    if not set(pc.unique(table["role"]).to_pylist()) <= {"shard", "reject"}:
        raise damaged("a role is neither shard nor reject")
    for name in pc.unique(table["sha256"]).to_pylist():
        if not DIGEST.fullmatch(name):
            raise damaged(f"{name[:80]!r} is not a SHA-256 in hex")
    for column, least in (("rows", 0), ("bytes", 0), ("row_group_rows", 1)):
        if table.num_rows and pc.min(table[column]).as_py() < least:
            raise damaged(f"{column} holds a value below {least}")
    return table


def check_name(name: str) -> None:
    """Refuse a text that cannot be the name of a dataset.

    Raises:
        AltDiffusionError: the text is not a valid name.
    """
    if not _NAME.fullmatch(name):
        raise AltDiffusionError(
            f"dataset name {name[:200]!r}", "is not usable", "use lower-case letters, digits, '.', '_' and '-'"
        )


class Dataset:
    """A named series of versions in a lake, open for writing."""

    def __init__(self, lake_uri: str, name: str) -> None:
        check_name(name)
        self.name = name
        self.folder_uri = files.within(lake_uri, "datasets", name)
        self.lake_uri = lake_uri
        for part in ("shards", "rejects", "ledger", "versions"):
            files.within(self.folder_uri, part)

    def write_shard(self, table: pa.Table, row_group_rows: int = ROW_GROUP_ROWS) -> ShardInfo:
        """Write accepted rows as a shard; the table must have a schema of `records`."""
        return shards.write_table(files.join(self.folder_uri, "shards"), table, row_group_rows)

    def write_rejects(self, table: pa.Table) -> ShardInfo:
        """Write rejected rows (records.REJECTS) as a shard."""
        return shards.write_table(files.join(self.folder_uri, "rejects"), table.cast(REJECTS), shards.NARROW_GROUP_ROWS)

    def ledger(self, fingerprint: str) -> Ledger:
        """Return the ledger of the work under one config fingerprint."""
        pages = files.within(self.lake_uri, "index", "ledger", self.name, fingerprint)
        return Ledger(files.within(self.folder_uri, "ledger", fingerprint), pages)

    def publish(
        self,
        *,
        kind: Kind,
        records: Outcome | Iterable[UnitRecord],
        parents: Sequence[Ref],
        config: Mapping[str, Any],
        fingerprint: str,
        made_by: str | None = None,
        is_head: bool = True,
    ) -> Version:
        """Publish the version of these records (in any order) and, with `is_head`, make it the dataset's head.

        UnitRecord guarantees rows in = accepted + rejected for each unit; here the shards are counted again.

        Args:
            made_by: a plain name for people, of the pipeline step; it has no influence on the version's digest.
        """
        made = records if isinstance(records, Outcome) else Outcome(records)
        if made.rows_in != made.rows + sum(made.rejects_by_reason.values()):
            raise AssertionError(f"dataset {self.name}: rows in differ from accepted + rejected; nothing is published")
        table_bytes = shards.encode(made.table(), row_group_rows=65536)
        manifest = Manifest(
            format=FORMAT,
            name=self.name,
            kind=kind,
            parents=tuple(str(parent) for parent in parents),
            config=config,
            fingerprint=fingerprint,
            code_version=altdiffusion.__version__,
            schema=tuple(f"{field.name}:{field.type}" for field in SCHEMAS[kind]),
            rows=made.rows,
            rows_by_language=made.rows_by_language,
            rejects_by_reason=made.rejects_by_reason,
            tally=made.tally,
            shards_table_sha256=files.sha256_hex(table_bytes),
        )
        version = Version(self.folder_uri, manifest)
        if made_by is not None:
            files.put_if_absent(files.join(version.uri, MADE_BY), files.canonical_json({"pipeline_step": made_by}))
        files.write_atomic(files.join(version.uri, "shards.parquet"), table_bytes)
        files.put_if_absent(files.join(version.uri, "manifest.json"), manifest.canonical())
        if is_head:
            self.set_head(version)
        return version

    def set_head(self, version: Version) -> None:
        """Make the bare name mean this version."""
        head = files.canonical_json({"digest": version.ref.digest})
        files.write_atomic(files.join(self.folder_uri, "head.json"), head)

    def digests(self) -> list[str]:
        """Return the digests of all versions."""
        return [one.parts[0] for one in list_marked(files.join(self.folder_uri, "versions"), 1, "manifest.json")]

    def head(self) -> Version | None:
        """Return the version that the bare name means, the one published last; None before the first."""
        digest = self.head_digest()
        return None if digest is None else self.open(digest)

    def head_digest(self) -> str | None:
        """Return the digest in head.json; None where there is no such file.

        Raises:
            AltDiffusionError: the file does not hold a digest.
        """
        remedy = f"run `altdiffusion dataset verify {self.name} --forget`, then the job that made the dataset again"
        try:
            return read_document(files.within(self.folder_uri, "head.json"), remedy=remedy).digest("digest")
        except FileNotFoundError:
            return None

    def absent(self) -> AltDiffusionError:
        """Return the error for a dataset that has no version."""
        there = Lake(self.lake_uri).names()
        near = difflib.get_close_matches(self.name, there, n=2)
        names = ", ".join(there) or "none"
        meant = f"did you mean {' or '.join(near)}? If not, " if near else ""
        return AltDiffusionError(
            f"dataset {self.name}",
            f"has no version in {self.lake_uri}",
            f"{meant}run the job that makes it first; datasets here: {names}",
        )

    def open(self, digest: str) -> Version:
        """Return the version with a digest or unique prefix.

        Raises:
            AltDiffusionError: none or several match, or the manifest is damaged.
        """
        whole = digest if DIGEST.fullmatch(digest) else self._only(digest)
        uri = files.within(self.folder_uri, "versions", whole, "manifest.json")
        try:
            raw = files.read_bytes(uri)
        except FileNotFoundError:
            raise self._no_version(digest, 0) from None
        return Version(self.folder_uri, self.manifest_of(uri, whole, raw))

    def open_many(self, digests: Sequence[str]) -> list[Version | AltDiffusionError]:
        """Return the versions with these digests, read along with each other, or why one cannot be opened."""
        found: list[Version | AltDiffusionError] = []
        uris = [files.within(self.folder_uri, "versions", digest, "manifest.json") for digest in digests]
        for digest, uri, raw in zip(digests, uris, files.read_many(uris), strict=True):
            try:
                if isinstance(raw, FileNotFoundError):
                    raise self._no_version(digest, 0)
                if isinstance(raw, AltDiffusionError):
                    raise raw
                found.append(Version(self.folder_uri, self.manifest_of(uri, digest, raw)))
            except AltDiffusionError as error:
                found.append(error)
        return found

    def _only(self, prefix: str) -> str:
        found = [known for known in self.digests() if known.startswith(prefix)]
        if len(found) != 1:
            raise self._no_version(prefix, len(found))
        return found[0]

    def _no_version(self, digest: str, found: int) -> AltDiffusionError:
        return AltDiffusionError(
            f"dataset {self.name}@{digest}",
            "does not exist" if not found else f"is ambiguous ({found} versions)",
            f"versions are: {', '.join(d[:12] for d in self.digests()) or 'none'}",
        )

    def manifest_of(self, uri: str, digest: str, raw: bytes) -> Manifest:
        """Return the manifest that the content of a file means.

        Raises:
            AltDiffusionError: the content is not that of the manifest with this digest.
        """
        if files.sha256_hex(raw) != digest:
            raise AltDiffusionError(
                f"manifest {uri}", "is damaged: its SHA-256 is not its version's digest", shards.REMEDY
            )
        document = parse_document(uri, raw, remedy=shards.REMEDY)
        if document.value.get("format") != FORMAT:
            raise AltDiffusionError(
                f"manifest {uri}",
                f"has format {str(document.value.get('format'))[:80]!r}, this version reads {FORMAT!r}",
                "use the version of altdiffusion that wrote it, or make the dataset again in a new lake",
            )
        manifest = Manifest.of_document(document)
        if manifest.name != self.name:
            raise document.wrong("name", repr(self.name))
        if manifest.digest != digest:
            raise AltDiffusionError(f"manifest {uri}", "is damaged: it holds more than a manifest does", shards.REMEDY)
        return manifest


class Lake:
    """The root of everything that a team makes: datasets, checkpoints, exports and models, on any fsspec URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def dataset(self, name: str) -> Dataset:
        return Dataset(self.uri, name)

    def names(self) -> list[str]:
        """Return the names of all datasets; a folder without a valid name was not made by a job and is left out."""
        return [name for name in files.list_folders(files.join(self.uri, "datasets")) if _NAME.fullmatch(name)]

    def version(self, ref: Ref | str) -> Version:
        """Return the version for `name`, `name@prefix`, `dataset:name@prefix` or a Ref.

        Raises:
            AltDiffusionError: there is no such dataset or version.
        """
        text = str(ref).removeprefix("dataset:")
        name, _, digest = text.partition("@")
        dataset = self.dataset(name)
        version = dataset.open(digest) if digest else dataset.head()
        if version is None:
            raise dataset.absent()
        return version
