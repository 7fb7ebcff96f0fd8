"""Select: from a source's rows to candidates: filtered, normalised, language decided, split into dedup buckets.

A unit is decided in two passes. The first reads numbers only, and not even those where a row group's statistics prove
that every row fails; the second reads URL, caption and the rest of the row groups that have candidates left. A row's
reason is the same as if all had been read at once. What a reject carries depends on what was read: URL and row id
only where its row group had a candidate, otherwise both are null, and unit and row name the row of the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.language import clean
from altdiffusion.curation.language.clean import clean_captions, tidy_captions
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.links.filters import (
    CODES,
    REASONS,
    Codes,
    NumberFilter,
    columns_of,
    first_proved,
    judge,
    number_filters,
)
from altdiffusion.curation.links.reader import UnitReader, open_unit
from altdiffusion.curation.links.row_groups import RowGroup, Rows
from altdiffusion.curation.links.source_columns import NOT_UTF8, SCORES, SIZES, TEXTS, numbers, texts
from altdiffusion.curation.links.text_unit import TextUnitReader
from altdiffusion.curation.rejects import (
    ASPECT,
    BAD_URL,
    BLOCKLIST,
    CAPTION,
    CAPTION_BYTES,
    LANGUAGE,
    SIZE,
    URL_SCHEME,
    coded,
)
from altdiffusion.curation.web.blocklist import Blocklist, source_blocklist
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.reject_reasons import Reason, rejects_table
from altdiffusion.execution.units import Unit, UnitWork
from altdiffusion.hashing import hash64
from altdiffusion.records import LINKS
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import NARROW_GROUP_ROWS
from altdiffusion.urls import AROUND, url_keys

_AROUND = "".join(f"\\x{{{ord(character):x}}}" for character in AROUND)
_LINK = rf"^[{_AROUND}]*(?i:https?)://[^/?#\s]"
_BYTES = {NOT_UTF8["url"]: BAD_URL, NOT_UTF8["caption"]: CAPTION_BYTES}
_WRONG_BYTES: dict[Reason, str] = {reason: name for name, reason in _BYTES.items()}
_SHOWN = 80
"""Characters of a caption that was rejected for its language."""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """Some rows of a unit, decided."""

    accepted: pa.Table
    """LINKS, in input order."""
    bucket: npt.NDArray[np.uint16]
    """[accepted] the dedup bucket of each."""
    rejects: pa.Table
    """REJECTS, in input order."""


@dataclass(kw_only=True)
class _Numbers:
    """The numbers of a unit's rows as far as they were read: sizes int32 (0 is null), scores float64 (NaN is null)."""

    rows: int
    held: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def keep(self, rows: Rows, columns: Mapping[str, pa.ChunkedArray], names: Sequence[str]) -> None:
        for name in names:
            empty: Any = np.int32(0) if name in SIZES else np.float64(np.nan)
            if name not in self.held:
                self.held[name] = np.full(self.rows, empty)
            self.held[name][rows] = pc.fill_null(columns[name], empty).to_numpy()

    def of(self, rows: Rows) -> dict[str, pa.Array]:
        columns = {}
        for name, values in self.held.items():
            part = values[rows]
            columns[name] = pa.array(part, mask=part == 0 if name in SIZES else np.isnan(part))
        return columns


class SelectWork(RangeWork):
    """The work on a row range of a source part; a unit leaves one shard per bucket, empty ones included."""

    def __init__(
        self, *, lake: str, dataset: str, source: SourceConfig, select: SelectConfig, language: LanguageConfig
    ) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.source, self.select, self.language = source, select, language
        self._identifier: LanguageIdentifier | None = None
        self._blocklist: Blocklist | None = None

    def setup(self) -> None:
        """Load the language model and the blocklist."""
        self._identifier = LanguageIdentifier(self.language)
        clean.load()
        self._blocklist = source_blocklist(self.source)

    def run(self, unit: Unit) -> UnitRecord:
        """Read, decide and write one unit."""
        payload = unit.payload
        start, stop = int(payload["start"]), int(payload["stop"])
        partition = payload.get("partition")
        with open_unit(str(payload["uri"]), str(payload["part"]), start, stop, self.source, partition) as part:
            decided = list(self.decide(part, unit.id))
        accepted = pa.concat_tables([piece.accepted for piece in decided])
        rejects = pa.concat_tables([piece.rejects for piece in decided])
        rows = rejects["row"].to_numpy()
        if (np.diff(rows) < 0).any():
            rejects = rejects.take(pa.array(np.argsort(rows)))
        return finish_unit(
            self.output,
            unit,
            rows_in=stop - start,
            accepted=by_bucket(accepted, np.concatenate([piece.bucket for piece in decided]), self.select.buckets),
            rejects=[rejects],
            keep_empty=True,
            row_group_rows=NARROW_GROUP_ROWS,
        )

    def decide(self, part: UnitReader | TextUnitReader, unit_id: str) -> Iterator[Decided]:
        """Make both passes over a unit's rows; accepted rows come in input order, rejects do not."""
        filters = number_filters(self.select)
        names = columns_of(filters)
        judged: list[RowGroup] = []
        doomed: dict[int, list[tuple[RowGroup, str]]] = {}  # by the place of the filter that all rows must fail
        for group in part.groups:
            proved = first_proved(filters, part.bounds(group))
            if proved is None:
                judged.append(group)
            else:
                doomed.setdefault(proved[0], []).append((group, proved[1]))
        for place, entries in doomed.items():
            yield from self._doomed(part, unit_id, filters[: place + 1], entries)

        held = _Numbers(rows=part.rows)
        codes = np.zeros(part.rows, np.uint8)
        for rows, given in part.batches(judged, names):
            columns = numbers(given, len(rows))
            codes[rows] = judge(filters, columns, len(rows))
            held.keep(rows, columns, names)
        spans = {group: np.arange(max(group.first, 0), min(group.first + group.rows, part.rows)) for group in judged}
        closed = [span for span in spans.values() if codes[span].all()]
        if closed:
            rows = np.concatenate(closed)
            yield _without_texts(held.of(rows), codes[rows], unit_id, rows)
        open_groups = [group for group, span in spans.items() if not codes[span].all()]
        left = [name for name in (*SIZES, *SCORES) if name not in names]
        for rows, given in part.batches(open_groups, ["sample_id", *TEXTS, *left]):
            columns = {**numbers(given, len(rows)), **held.of(rows), **texts(given, len(rows), self.source)}
            yield self.decide_rows(columns, codes[rows], unit_id, rows)

    def _doomed(
        self,
        part: UnitReader | TextUnitReader,
        unit_id: str,
        filters: Sequence[NumberFilter],
        entries: Sequence[tuple[RowGroup, str]],
    ) -> Iterator[Decided]:
        """Decide row groups all rows of which fail the last of these filters, if they pass the others."""
        *asked, last = filters
        proof = np.zeros(part.rows, np.intp)
        for number, (group, _) in enumerate(entries):
            proof[max(group.first, 0) : group.first + group.rows] = number
        whys = pa.array([why for _, why in entries], pa.string())
        for rows, given in part.batches([group for group, _ in entries], columns_of(asked)):
            columns = numbers(given, len(rows))
            codes = judge(asked, columns, len(rows))
            codes[codes == 0] = CODES[last.reason]
            why = whys.take(pa.array(proof[rows]))
            yield _without_texts(columns, codes, unit_id, rows, proved=last.reason, why=why)

    def decide_rows(self, columns: Mapping[str, Any], codes: Codes, unit_id: str, rows: Rows) -> Decided:
        """Make the second pass: URL, blocklist, caption, language.

        Args:
            columns: all of them, normalised.
            codes: [N] what the first pass found.
            rows: [N] the number of each row within the unit.
        """
        if self._identifier is None:
            raise RuntimeError("setup() has not been called")
        flat = {name: _flat(column) for name, column in columns.items()}
        codes = codes.copy()
        for name, reason in _BYTES.items():  # a replaced character would be part of a caption, or vanish from it
            if flat[name].null_count < len(codes):
                codes[np.asarray(flat[name].is_valid()) & (codes == 0)] = CODES[reason]
        candidates = np.flatnonzero(codes == 0)
        url = _take(flat["url"], candidates)
        keys = url_keys(url)
        published = _take(flat["caption"], candidates)
        captions = (clean_captions if self.select.clean_captions else tidy_captions)(published)
        sample_id = _take(flat["sample_id"], candidates)
        codes[candidates] = self._judge_texts(url, keys, sample_id, captions)
        passed = np.flatnonzero(codes[candidates] == 0)
        asked = candidates[passed]
        captions, published = _take(captions, passed), _take(published, passed)
        language, score, guess = self._identifier.identify(captions, _take(flat["source_language"], asked))
        believed = language.is_valid().to_numpy(zero_copy_only=False)
        codes[asked[~believed]] = CODES[LANGUAGE]

        kept = asked[believed]
        made = {
            "url": _take(url, passed[believed]),
            "caption": captions.filter(pa.array(believed)),
            "original_caption": _where_changed(published, captions).filter(pa.array(believed)),
            "language": language.filter(pa.array(believed)),
            "language_score": score.filter(pa.array(believed)),
            "source": pa.repeat(pa.scalar(self.source.name, pa.string()), len(kept)),
        }
        accepted = pa.table(
            [
                (made[field.name] if field.name in made else _take(flat[field.name], kept)).cast(field.type)
                for field in LINKS
            ],
            schema=LINKS,
        )
        doubted = asked[~believed]
        flat["guess"] = _scatter(guess.filter(pa.array(~believed)), doubted, len(codes))
        flat["doubted"] = _scatter(
            pc.utf8_slice_codeunits(captions.filter(pa.array(~believed)), 0, _SHOWN), doubted, len(codes)
        )
        return Decided(
            accepted=accepted,
            bucket=buckets_of(_take(keys, passed[believed]), self.select.buckets),
            rejects=_rejects(flat, codes, unit_id, rows),
        )

    def _judge_texts(self, url: pa.Array, keys: pa.Array, sample_id: pa.Array, captions: pa.Array) -> Codes:
        """Return the code of the first of url_scheme, blocklist and caption that each row fails."""
        codes = np.zeros(len(url), np.uint8)
        spoken = pc.match_substring_regex(captions, r"\p{L}")
        good = pc.and_(spoken, pc.less_equal(pc.utf8_length(captions), self.select.max_caption_chars))
        codes[~np.asarray(pc.fill_null(good, False), bool)] = CODES[CAPTION]
        if self._blocklist is not None:
            codes[self._blocklist.blocks(keys, sample_id)] = CODES[BLOCKLIST]
        link = pc.match_substring_regex(url, _LINK)
        codes[~np.asarray(pc.fill_null(link, False), bool)] = CODES[URL_SCHEME]
        return codes


class SelectSourcesWork(UnitWork):
    """Passes each unit to the `SelectWork` of its source, which has thresholds of its own: similarity scales differ."""

    def __init__(self, works: Mapping[str, SelectWork]) -> None:
        self.works = dict(works)

    def setup(self) -> None:
        """Load blocklists, and the language model once."""
        for work in self.works.values():
            work.setup()

    def run(self, unit: Unit) -> UnitRecord:
        """Process one row range of one source."""
        return self.works[str(unit.payload["source"])].run(unit)


def _without_texts(
    columns: Mapping[str, Any],
    codes: Codes,
    unit_id: str,
    rows: Rows,
    *,
    proved: str = "",
    why: pa.Array | None = None,
) -> Decided:
    """Decide rows of which the first pass left none."""
    flat = {name: _flat(column) for name, column in columns.items()}
    rejects = _rejects(flat, codes, unit_id, rows, proved=proved, why=why)
    return Decided(accepted=LINKS.empty_table(), bucket=np.zeros(0, np.uint16), rejects=rejects)


def _rejects(
    columns: Mapping[str, pa.Array],
    codes: Codes,
    unit_id: str,
    rows: Rows,
    *,
    proved: str = "",
    why: pa.Array | None = None,
) -> pa.Table:
    """Return the rows that have a code as rejects, with what is known about them.

    Args:
        columns: of all rows; `guess` and `doubted` are the language and the caption of those rejected for it.
        rows: the number of each within the unit.
        proved: the reason that was not found row by row but by statistics, and `why` in words.
    """
    dropped = np.flatnonzero(codes)

    def known(name: str) -> Any:
        return pa.chunked_array([_take(columns[name], dropped)]) if name in columns else None

    shown = {**columns, **({proved: why} if why is not None else {})}
    return rejects_table(
        unit_id,
        row=rows[dropped],
        reason=coded(REASONS, codes[dropped]),
        sample_id=known("sample_id"),
        url=known("url"),
        language=known("guess"),
        detail=pa.chunked_array([_details(shown, codes, dropped, proved)]),
    )


def _details(columns: Mapping[str, pa.Array], codes: Codes, dropped: Rows, proved: str) -> pa.Array:
    """Return the value that failed, for people: worked out reason by reason, then put back into the rows' order."""
    reason = codes[dropped]
    order = np.argsort(reason, kind="stable")
    counts = np.bincount(reason, minlength=len(REASONS) + 1)
    ends = np.cumsum(counts)
    details = [pa.array([], pa.string())]
    for code in np.flatnonzero(counts):
        rows = dropped[order[ends[code] - counts[code] : ends[code]]]
        name = REASONS[code - 1]
        if name == proved or name in SCORES:
            details.append(_take(columns[name], rows).cast(pa.string()))
        elif name in (SIZE, ASPECT):
            sides = [pc.fill_null(_take(columns[side], rows).cast(pa.string()), "?") for side in SIZES]
            details.append(pc.binary_join_element_wise(*sides, "x"))
        elif name == LANGUAGE:
            details.append(_take(columns["doubted"], rows))
        elif name in _WRONG_BYTES:
            details.append(_take(columns[_WRONG_BYTES[name]], rows))
        else:
            details.append(pa.nulls(len(rows), pa.string()))
    back = np.empty(len(order), np.intp)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(details).take(pa.array(back))


def by_bucket(table: pa.Table, bucket: npt.NDArray[np.uint16], buckets: int) -> list[pa.Table]:
    """Return the rows of each bucket, order kept: rows with one URL key always meet in one."""
    ordered = table.take(pa.array(np.argsort(bucket, kind="stable")))
    ends = np.cumsum(np.bincount(bucket, minlength=buckets)).tolist()
    return [ordered.slice(start, stop - start) for start, stop in zip([0, *ends], ends, strict=False)]


def buckets_of(keys: pa.Array, buckets: int) -> npt.NDArray[np.uint16]:
    """Return the dedup bucket of each URL key: by a hash, so that no site fills one bucket."""
    return (hash64(keys) % np.uint64(buckets)).astype(np.uint16)


def _where_changed(published: pa.Array, captions: pa.Array) -> pa.Array:
    """Return the published captions, null where they are stored as they were."""
    if published is captions or published.equals(captions):
        return pa.nulls(len(captions), pa.string())
    return pc.if_else(pc.equal(published, captions), pa.scalar(None, pa.string()), published)


def _flat(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _take(values: pa.Array, rows: Rows) -> pa.Array:
    """Return some rows of an array, in ascending order; to take all of them costs nothing."""
    return values if len(rows) == len(values) else values.take(pa.array(rows))


def _scatter(values: pa.Array, rows: Rows, total: int) -> pa.Array:
    """Return an array of `total` nulls, with values at the given rows."""
    place = np.zeros(total, np.int64)
    place[rows] = np.arange(len(rows))
    missing = np.ones(total, bool)
    missing[rows] = False
    return values.take(pa.array(place, mask=missing))
