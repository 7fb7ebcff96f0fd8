"""Select: from a source's rows to candidates: normalised, filtered, language decided, split into dedup buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.blocklist import Blocklist, load_blocklist
from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.language import LanguageIdentifier, clean_caption
from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.curation.source import read_rows
from altdiffusion.records import LINKS
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import Unit, UnitRecord

# The first that fails is a row's one reason.
REASONS = (
    "url_scheme", "blocklist", "caption", "size", "aspect", "similarity", "punsafe", "pwatermark", "aesthetic",
    "language",
)  # fmt: skip


class SelectWork:
    """Works a row range of a source part; writes `buckets` shards a unit, in bucket order, empty ones included."""

    def __init__(
        self, *, lake: str, dataset: str, source: SourceConfig, select: SelectConfig, language: LanguageConfig
    ) -> None:
        self.lake, self.dataset = lake, dataset
        self.source, self.select, self.language = source, select, language
        self._identifier: LanguageIdentifier | None = None
        self._blocklist: Blocklist | None = None

    def setup(self) -> None:
        """Loads the language model and the blocklist."""
        self._identifier = LanguageIdentifier(self.language)
        if self.source.blocklist is not None and self.source.blocklist_sha256 is not None:
            self._blocklist = load_blocklist(self.source.blocklist, self.source.blocklist_sha256)

    def run(self, unit: Unit) -> UnitRecord:
        """Reads, decides and writes one unit."""
        payload = unit.payload
        rows = read_rows(str(payload["uri"]), int(payload["start"]), int(payload["stop"]), self.source)
        accepted, rejects = self.split(rows, unit.id)
        return finish_unit(
            Lake(self.lake).dataset(self.dataset),
            unit,
            rows_in=rows.num_rows,
            accepted=split_by_bucket(accepted, self.select.buckets),
            rejects=rejects,
            keep_empty=True,
        )

    def split(self, rows: pa.Table, unit_id: str) -> tuple[pa.Table, pa.Table]:
        """Normalised rows -> (LINKS rows that stay, REJECTS rows with the first reason that applies), in order."""
        if self._identifier is None:
            raise RuntimeError("setup() has not been called")
        captions = clean_caption(rows["caption"])
        rows = rows.set_column(rows.column_names.index("caption"), "caption", captions)
        blocked = self._blocklist.blocks(rows) if self._blocklist is not None else None
        reason = first_reason(failures(rows, self.select, blocked), rows.num_rows)
        candidates = np.flatnonzero(reason == "")
        open_rows = rows.take(pa.array(candidates))
        language, score, guess = self._identifier.identify(
            open_rows["caption"].combine_chunks(), open_rows["source_language"].combine_chunks()
        )
        believed = language.is_valid().to_numpy(zero_copy_only=False)
        reason[candidates[~believed]] = "language"
        guesses = np.full(rows.num_rows, None, object)
        guesses[candidates] = guess.to_numpy(zero_copy_only=False)

        kept = open_rows.filter(pa.array(believed))
        columns = {name: kept[name] for name in kept.column_names}
        columns["language"] = language.filter(pa.array(believed))
        columns["language_score"] = score.filter(pa.array(believed))
        columns["source"] = pa.array([self.source.name] * kept.num_rows, pa.string())
        accepted = pa.table([columns[field.name].cast(field.type) for field in LINKS], schema=LINKS)

        dropped = np.flatnonzero(reason != "")
        gone = rows.take(pa.array(dropped))
        rejects = rejects_table(
            unit_id,
            row=dropped,
            reason=reason[dropped],
            sample_id=gone["sample_id"],
            url=gone["url"],
            language=guesses[dropped],
            detail=_details(gone, reason[dropped]),
        )
        return accepted, rejects


def failures(rows: pa.Table, config: SelectConfig, blocked: Any = None) -> Iterator[tuple[str, Any]]:
    """(reason, whether each row fails it; null counts as failing) in the order of REASONS, language excepted."""
    yield "url_scheme", pc.invert(pc.match_substring_regex(rows["url"], r"^(?i:https?)://[^/?#\s]"))
    if blocked is not None:
        yield "blocklist", blocked
    caption = rows["caption"]
    spoken = pc.match_substring_regex(caption, r"\p{L}")
    yield "caption", pc.invert(pc.and_(spoken, pc.less_equal(pc.utf8_length(caption), config.max_caption_chars)))
    sides = (rows["width"], rows["height"])
    short, long = pc.min_element_wise(*sides, skip_nulls=False), pc.max_element_wise(*sides, skip_nulls=False)
    if config.min_side is not None:
        yield "size", _kept_null(pc.less(short, config.min_side), "size", config)
    if config.max_aspect is not None:
        ratio = pc.divide(long.cast(pa.float64()), short.cast(pa.float64()))
        yield "aspect", _kept_null(pc.greater(ratio, config.max_aspect), "size", config)
    if config.similarity_above is not None:
        passes = pc.greater(rows["similarity"], config.similarity_above)
        yield "similarity", _kept_null(pc.invert(passes), "similarity", config)
    if config.punsafe_below is not None:
        passes = pc.less(rows["punsafe"], config.punsafe_below)
        yield "punsafe", _kept_null(pc.invert(passes), "punsafe", config)
    if config.pwatermark_below is not None:
        passes = pc.less(rows["pwatermark"], config.pwatermark_below)
        yield "pwatermark", _kept_null(pc.invert(passes), "pwatermark", config)
    if config.aesthetic_above is not None:
        passes = pc.greater(rows["aesthetic"], config.aesthetic_above)
        yield "aesthetic", _kept_null(pc.invert(passes), "aesthetic", config)


def _kept_null(fails: Any, name: str, config: SelectConfig) -> Any:
    return pc.fill_null(fails, name not in config.keep_null)


def first_reason(found: Iterator[tuple[str, Any]], rows: int) -> Any:
    """[rows] the first reason each row fails, "" where none does."""
    reason = np.full(rows, "", object)
    for name, fails in found:
        mask = pc.fill_null(fails, True).to_numpy(zero_copy_only=False)
        reason[np.asarray(mask, bool) & (reason == "")] = name
    return reason


def _details(gone: pa.Table, reason: Any) -> pa.Array:
    """The value that failed, for people."""
    texts: dict[str, Any] = {
        name: gone[name].cast(pa.string()) for name in ("similarity", "punsafe", "pwatermark", "aesthetic")
    }
    texts["language"] = pc.utf8_slice_codeunits(gone["caption"], 0, 80)
    sides = [pc.fill_null(gone[name].cast(pa.string()), "?") for name in ("width", "height")]
    texts["size"] = texts["aspect"] = pc.binary_join_element_wise(*sides, "x")
    detail: Any = pa.nulls(gone.num_rows, pa.string())
    for name, text in texts.items():
        detail = pc.if_else(pa.array(np.asarray(reason == name, bool)), text, detail)
    return detail.combine_chunks() if isinstance(detail, pa.ChunkedArray) else detail


def split_by_bucket(table: pa.Table, buckets: int) -> list[pa.Table]:
    """The rows by `bucket_of` their URL, order kept: equal URLs always meet in one bucket."""
    bucket = np.fromiter((bucket_of(url, buckets) for url in table["url"].to_pylist()), np.int64, table.num_rows)
    return [table.filter(pa.array(bucket == number)) for number in range(buckets)]


def bucket_of(url: str, buckets: int) -> int:
    """The dedup bucket of a URL: MurmurHash3, so that no site fills one bucket."""
    return int(mmh3.hash(url, signed=False)) % buckets
