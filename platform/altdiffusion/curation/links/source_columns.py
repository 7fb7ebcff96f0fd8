"""One shape for all variants of a source's columns: names, types, nulls, labels, hashes.

LAION published the same table in several spellings (FACTS 2): column names in upper or lower case, sizes as int32,
int64 or double, null scores, WIDTH and HEIGHT swapped in the base release, `hash` in the joined sets only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import SourceConfig
from altdiffusion.errors import AltDiffusionError
from altdiffusion.hashing import murmur64

# Spellings of each column, lower case. Of several the first counts: a set that was downloaded once holds the sizes of
# its own, shrunken images next to the original ones.
ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url",),
    "caption": ("text", "caption", "alt_text"),
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "similarity": ("similarity",),
    "source_language": ("language", "lang"),
    "sample_id": ("hash",),
    "pwatermark": ("pwatermark",),
    "punsafe": ("punsafe",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
    "expected_hash": ("expected_hash",),
}
SIZES = ("width", "height")
SCORES = ("similarity", "punsafe", "pwatermark", "aesthetic")
HASHES: dict[str, int] = {"sha256": 64, "md5": 32, "phash": 16}
"""Hashes of the image's bytes (of the image itself: `phash`), and their number of hex digits."""
TEXTS = ("url", "caption", "source_language", "expected_hash", *HASHES)
NOT_UTF8 = {"url": "url not UTF-8", "caption": "caption not UTF-8"}
"""The column that names the first byte of a text that is not UTF-8."""
# gcld3 gives `iw` for Hebrew and marks Latin transcriptions; both are normalised to plain ISO 639 codes.
_LABELS = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi", "zh-cn": "zh", "zh-tw": "zh"}
_NO_LABEL = ("", "unknown", "und", "none", "nolang")


def resolve_columns(schema: pa.Schema, config: SourceConfig, uri: str) -> dict[str, str]:
    """Return the part's column for each of our names; width and height the right way round.

    Raises:
        AltDiffusionError: a column that the preset or the config promises is missing or of a type that cannot hold
            it, or two columns claim to be the same one.
    """
    chosen = {} if config.shape.mapped else _by_alias(schema, uri, config.ignore)
    for name, column in config.columns.items():
        if column not in schema.names:
            raise _missing(uri, repr(column), schema, f"correct `columns.{name}` of source {config.name}")
        chosen[name] = column
    for name in config.shape.requires:
        if name not in chosen and name not in config.ignore:
            remedy = f"choose the preset that this source has (now {config.preset}), or name the column in `columns`"
            # LAION's own spelling comes last where a set that was downloaded once has another one as well.
            spellings = [repr(spelling.upper()) for spelling in reversed(ALIASES[name])]
            raise _missing(uri, " or ".join(spellings if name in SIZES else spellings[-1:]), schema, remedy)
    for name, column in chosen.items():
        _check_type(name, schema.field(column), uri, config)
    if config.sizes_are_swapped:
        sizes = {ours: chosen.pop(ours) for ours in SIZES if ours in chosen}
        chosen |= {SIZES[1 - SIZES.index(ours)]: column for ours, column in sizes.items()}
    return chosen


def _by_alias(schema: pa.Schema, uri: str, ignore: Collection[str]) -> dict[str, str]:
    read = {name: spellings for name, spellings in ALIASES.items() if name not in ignore}
    spelled: dict[str, str] = {}
    for column in schema.names:
        if column.lower() in spelled and any(column.lower() in spellings for spellings in read.values()):
            both = f"{spelled[column.lower()]!r}, {column!r}"
            ours = next(name for name, spellings in read.items() if column.lower() in spellings)
            raise AltDiffusionError(f"source part {uri}", f"has two columns for {ours}: {both}", "drop one of them")
        spelled[column.lower()] = column
    chosen = {}
    for name, spellings in read.items():
        here = [spelled[spelling] for spelling in spellings if spelling in spelled]
        if len(here) > 1 and name not in SIZES:
            raise AltDiffusionError(
                f"source part {uri}",
                f"has two columns for {name}: {here[0]!r}, {here[1]!r}",
                f"state which one it is by `columns: {{{name}: ...}}`",
            )
        if here:
            chosen[name] = here[0]
    return chosen


def _missing(uri: str, column: str, schema: pa.Schema, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(f"source part {uri}", f"lacks column {column}; it has {', '.join(schema.names)}", remedy)


def _check_type(name: str, field: pa.Field, uri: str, config: SourceConfig) -> None:
    dtype = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if name in TEXTS:
        good = pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)
        wanted = "text"
    elif name == "sample_id":
        good, wanted = pa.types.is_integer(dtype), "a whole number"
    else:
        good, wanted = pa.types.is_integer(dtype) or pa.types.is_floating(dtype), "a number"
    if good or pa.types.is_null(dtype):
        return
    remedy = f"write the part with {wanted} there, or map another column to {name} in `columns`"
    if name == "sample_id":  # as floating point or text, ids of pandas and others have lost digits or their sign
        remedy = f"`ignore: [sample_id]` in source {config.name} computes row ids as LAION's are"
    elif name not in config.shape.requires:
        remedy = f"{remedy}; `ignore: [{name}]` in source {config.name} works without it"
    raise AltDiffusionError(f"source part {uri}", f"column {field.name!r} is {dtype}, not {wanted}", remedy)


def numbers(given: Mapping[str, Any], rows: int) -> dict[str, pa.ChunkedArray]:
    """Return the sizes and scores, normalised; those that are not given are null.

    Args:
        given: the part's columns under our names, of any type that `resolve_columns` lets through.

    Returns:
        width, height: int32, null where not positive or absurd. Scores: float64, null for NaN, in the source's own
        precision, so that a strict comparison gives what the source's publisher got.
    """
    columns = {}
    for names, kind, dtype in ((SIZES, _size, pa.int32()), (SCORES, _score, pa.float64())):
        for name in names:
            columns[name] = kind(given[name]) if name in given else pa.chunked_array([pa.nulls(rows, dtype)])
    return columns


def texts(given: Mapping[str, Any], rows: int, config: SourceConfig) -> dict[str, pa.ChunkedArray]:
    """Return the columns that name and describe a row, normalised.

    Returns:
        url, caption: string, null where not UTF-8. The values of NOT_UTF8: where that is, for people, else null.
        source_language: plain code, or the source's own label where the row has none. expected_hash: `sha256:`, `md5:`
        or `phash:` and hex digits. sample_id: int64, computed where the source has none. All but the last may be null.
    """
    plain = {name: utf8_text(given[name]) for name in TEXTS if name in given}
    nothing = pa.chunked_array([pa.nulls(rows, pa.string())])
    labels = _labels(plain["source_language"]) if "source_language" in plain else nothing
    columns = {name: plain.get(name, nothing) for name in ("url", "caption")}
    wrong = {place: _not_utf8(given.get(name), columns[name]) for name, place in NOT_UTF8.items()}
    return (
        columns
        | wrong
        | {
            "source_language": labels if config.label is None else pc.fill_null(labels, config.label),
            "expected_hash": _expected(plain, nothing),
            "sample_id": _sample_ids(given.get("sample_id"), columns["url"], columns["caption"]),
        }
    )


def _sample_ids(given: Any, url: pa.ChunkedArray, caption: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return LAION's row id, `mmh3.hash64(url + text)[0]`: the source's own, and computed where it has none."""
    if given is not None:
        if pa.types.is_dictionary(given.type):
            given = given.cast(given.type.value_type)
        if given.type == pa.uint64():  # the same 64 bits
            given = pa.chunked_array([chunk.view(pa.int64()) for chunk in given.chunks], pa.int64())
        given = given.cast(pa.int64())
        if not given.null_count:
            return given
    joined = pc.binary_join_element_wise(pc.fill_null(url, ""), pc.fill_null(caption, ""), "")
    if given is None or given.null_count == len(given):
        return _each(joined, murmur64)
    missing = pc.is_null(given)
    computed = _each(joined.filter(missing), murmur64).combine_chunks()
    return pa.chunked_array([pc.replace_with_mask(given.combine_chunks(), missing.combine_chunks(), computed)])


def _each(values: pa.ChunkedArray, function: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    return pa.chunked_array([function(chunk) for chunk in values.chunks], pa.int64())


def utf8_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts; null where the bytes are not UTF-8."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        return values.cast(pa.binary()).cast(pa.string())  # the cast from binary checks the UTF-8
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        return pa.chunked_array(
            [pa.array([None if _wrong_byte(item) is not None else item for item in raw], pa.string())]
        )


def _wrong_byte(item: bytes | None) -> int | None:
    """Return the place of the first byte that is not UTF-8."""
    try:
        (item or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def _not_utf8(given: Any, text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return, for people, where each cell is not UTF-8; null where it is."""
    if given is None or given.null_count == text.null_count:
        return pa.chunked_array([pa.nulls(len(text), pa.string())])
    if pa.types.is_dictionary(given.type):
        given = given.cast(given.type.value_type)
    places = [_wrong_byte(item) for item in given.cast(pa.binary()).to_pylist()]
    return pa.chunked_array(
        [pa.array([None if at is None else f"byte {at} is not UTF-8" for at in places], pa.string())]
    )


def _size(values: pa.ChunkedArray) -> pa.ChunkedArray:
    wide = values.cast(pa.float64())
    good = pc.and_(pc.greater_equal(wide, 1.0), pc.less(wide, 2.0**31))
    return pc.if_else(good, pc.floor(pc.if_else(good, wide, 0.0)), None).cast(pa.int32())


def _score(values: pa.ChunkedArray) -> pa.ChunkedArray:
    wide = values.cast(pa.float64())
    return pc.if_else(pc.is_nan(wide), None, wide)


def _labels(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return plain ISO 639 codes; worked out once for each distinct label."""
    coded = values.combine_chunks().dictionary_encode()
    given = coded.dictionary
    plain = pc.replace_substring(pc.utf8_trim_whitespace(pc.utf8_lower(given)), "_", "-")
    plain = pc.replace_substring_regex(plain, "-latn$", "")
    plain = pc.if_else(pc.is_in(plain, pa.array(_NO_LABEL)), None, plain)
    for label, code in _LABELS.items():
        plain = pc.if_else(pc.equal(plain, label), code, plain)
    return pa.chunked_array([plain.take(coded.indices)])


def _expected(plain: Mapping[str, pa.ChunkedArray], nothing: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the source's hash of the image: as written, or else the strongest given; null where malformed."""
    hashes = nothing
    if "expected_hash" in plain:
        digits = "|".join(f"{kind}:[0-9a-f]{{{length}}}" for kind, length in HASHES.items())
        hashes = _matching(plain["expected_hash"], f"^(?:{digits})$")
    for kind, length in HASHES.items():
        if kind in plain:
            hexes = _matching(plain[kind], f"^[0-9a-f]{{{length}}}$")
            hashes = pc.coalesce(hashes, pc.binary_join_element_wise(f"{kind}:", hexes, ""))
    return hashes


def _matching(values: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    lowered = pc.ascii_lower(pc.utf8_trim_whitespace(values))
    return pc.if_else(pc.match_substring_regex(lowered, pattern), lowered, pa.scalar(None, pa.string()))
