"""Import: a unit of a source of images -> images, one row per caption, and what is kept of each row's own columns.

    source -> Sample -> inspect (header) -> DecoderPool (decode, resize, encode) -> rows, some at a time -> shards

A row is rejected for the first that applies: what the source lacks or states, the image, the caption, its language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from altdiffusion.curation.ahead import ahead
from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.config.own import Layout
from altdiffusion.curation.images.decode_guard import inspect
from altdiffusion.curation.images.decoder_pool import Decoded, DecoderPool
from altdiffusion.curation.language import clean
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.own.rows import OwnRows, Row, blocks
from altdiffusion.curation.own.sample import Sample
from altdiffusion.curation.own.scan import reader_of
from altdiffusion.curation.rejects import BLOCKLIST, DUPLICATE_ROW, NO_IMAGE, Refused
from altdiffusion.curation.web.blocklist import Blocklist, load_blocklist
from altdiffusion.execution.range_work import finish_unit
from altdiffusion.execution.reject_reasons import rejects_table
from altdiffusion.execution.units import MultiOutputWork, Unit
from altdiffusion.records import KEPT
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.tally import tally_images


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """An image as it is stored, with the SHA-256 (hex) of the bytes that came; or why it is not taken."""

    sample: Sample
    decoded: Decoded | None = None
    sha256: str = ""


@dataclass(kw_only=True)
class _Dropped:
    """Rejected rows of a unit."""

    rows: list[int] = field(default_factory=list)
    reasons: list[Any] = field(default_factory=list)
    details: list[str | None] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)

    def add(self, row: Row, refused: Refused, language: str | None = None) -> None:
        self.rows.append(row.number)
        self.reasons.append(refused.reason)
        self.details.append(refused.detail or None)
        self.urls.append(row.url)
        self.ids.append(row.sample_id)
        self.languages.append(language)

    def table(self, unit_id: str) -> pa.Table:
        order = sorted(range(len(self.rows)), key=self.rows.__getitem__)
        columns = {
            "row": self.rows, "reason": self.reasons, "detail": self.details, "url": self.urls, "sample_id": self.ids,
            "language": self.languages,
        }  # fmt: skip
        return rejects_table(unit_id, **{name: [values[at] for at in order] for name, values in columns.items()})


class OwnWork(MultiOutputWork):
    """The work on units of a source of images.

    Args:
        lake: URI of the lake.
        images: name of the dataset of images.
        kept: name of the dataset of what `config.keep` keeps, where it is made.
    """

    def __init__(self, *, lake: str, images: str, kept: str, layout: Layout, config: OwnConfig) -> None:
        self.lake, self.images, self.kept, self.layout, self.config = lake, images, kept, layout, config
        self._decoders: DecoderPool | None = None
        self._rows: OwnRows | None = None
        self._blocklist: Blocklist | None = None

    def setup(self) -> None:
        """Load the language model and the blocklist, and make the decoders."""
        config = self.config
        clean.load()
        self._decoders = DecoderPool(config.store)
        self._rows = OwnRows(config, LanguageIdentifier(config.identify) if config.identifies else None)
        if config.blocklist is not None and config.blocklist_sha256 is not None:
            self._blocklist = load_blocklist(config.blocklist, config.blocklist_sha256)

    def close(self) -> None:
        """End the decoders; the end of the process does the same."""
        if self._decoders is not None:
            self._decoders.close()

    def run_outputs(self, unit: Unit, outputs: Sequence[str]) -> list[UnitRecord]:
        """Read a unit once, and write its images and what is kept of its columns."""
        dropped, kept = _Dropped(), list[pa.Table]()
        counted = [0]
        pieces = self._pieces(unit, dropped, counted)

        def images() -> Iterator[pa.Table]:
            for piece in pieces:
                kept.append(piece.select(KEPT.names))
                yield piece.drop_columns(["kept"])

        lake, records = Lake(self.lake), {}
        for name, tables in ((self.images, images()), (self.kept, kept)):
            if name not in outputs:
                if name == self.images:
                    for _ in tables:
                        pass
                continue
            records[name] = finish_unit(
                lake.dataset(name),
                unit,
                rows_in=lambda: counted[0],
                accepted=tables,
                rejects=_Late(dropped, unit.id),
                tally=tally_images if name == self.images else None,
            )
        return [records[name] for name in outputs]

    def _pieces(self, unit: Unit, dropped: _Dropped, counted: list[int]) -> Iterator[pa.Table]:
        """Yield the accepted rows of a shard's size at a time; note the others."""
        assert self._rows is not None
        limit, held, size = self.config.store.shard_mib << 20, list[Row](), 0
        for row in self._accepted(unit, dropped, counted):
            held.append(row)
            size += len(row.decoded.body) if row.decoded is not None else 0
            if size >= limit:
                yield self._table(held, dropped)
                held, size = [], 0
        if held:
            yield self._table(held, dropped)

    def _table(self, held: Sequence[Row], dropped: _Dropped) -> pa.Table:
        assert self._rows is not None
        table, refused = self._rows.table(held)
        for row, why, guess in refused:
            dropped.add(row, why, guess)
        return table

    def _accepted(self, unit: Unit, dropped: _Dropped, counted: list[int]) -> Iterator[Row]:
        """Yield the rows whose image is taken; count all rows."""
        assert self._decoders is not None
        decoders = self._decoders.size
        samples = reader_of(self.layout, self.config)(unit)
        number = 0
        for stored in ahead(self._store, samples, threads=decoders, depth=2 * decoders):
            seen: set[str] = set()
            for row in self._rows_of(stored, number):
                number += 1
                if stored.sample.refused is not None:
                    dropped.add(row, stored.sample.refused)
                elif row.caption.text in seen:
                    dropped.add(row, Refused(DUPLICATE_ROW))
                elif self._is_listed(row):
                    dropped.add(row, Refused(BLOCKLIST))
                else:
                    yield row
                seen.add(row.caption.text)
            counted[0] = number

    def _rows_of(self, stored: _Stored, number: int) -> list[Row]:
        assert self._rows is not None
        return self._rows.rows(stored.sample, stored.decoded, stored.sha256, number)

    def _is_listed(self, row: Row) -> bool:
        if self._blocklist is None:
            return False
        return row.sha256 in self._blocklist.image_sha256 or blocks(self._blocklist, row)

    def _store(self, sample: Sample) -> _Stored:
        """Decode a sample's image and encode it as it is stored."""
        if sample.refused is not None:
            return _Stored(sample=sample)
        assert self._decoders is not None
        try:
            if not sample.body:
                raise Refused(NO_IMAGE, "the file is empty")
            sha256 = hashlib.sha256(sample.body).hexdigest()
            inspect(sample.body, self.config.store)
            decoded = self._decoders.decode(sample.body)
        except Refused as refused:
            return _Stored(sample=replace(sample, body=None, refused=refused))
        return _Stored(sample=replace(sample, body=None), decoded=decoded, sha256=sha256)


class _Late(Sequence[pa.Table]):
    """The rejects of a unit as one table, made when it is asked for: when all rows have been read."""

    def __init__(self, dropped: _Dropped, unit_id: str) -> None:
        self._dropped, self._unit_id = dropped, unit_id

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        if place:
            raise IndexError(place)
        return self._dropped.table(self._unit_id)
