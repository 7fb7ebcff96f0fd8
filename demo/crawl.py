"""A LAION-shaped crawl of the demo's images, with every fault planted and known.

    python -m demo.crawl --cache DIR

writes `<cache>/crawl/<source>/part-*.snappy.parquet`, `truth.parquet` and `labels.parquet`, the same bytes every time.
One more source, `judge-artists`, is what the evaluation's judge learns from (`demo.judge_source`).

Real are the images and the translated texts. `similarity`, `punsafe`, `pwatermark` and `aesthetic` are FILLERS:
keyed draws around LAION's thresholds, not measurements (those need model weights). LANGUAGE labels are the true ones,
some replaced by a likely wrong one at the rate measured for cld3, the labeller that LAION used.

Sources, and the thresholds (strict) that the truth assumes for each; a null score does not pass:
    laion2B-multi            base release: WIDTH and HEIGHT swapped, no scores; similarity > 0.26
    laion2B-multi-joined     + hash, pwatermark < 0.8, punsafe < 0.5; two parts that differ in their types
    laion2B-multi-aesthetic  + aesthetic > 7
    laion2B-en-aesthetic     column names in lower case, no language; similarity > 0.28
In all of them the shorter side has at least 64 pixels and the longer one at most 3 times as many.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmh3
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.languages import CODES
from demo import judge_source, site
from demo.captions import VARIANTS, caption, captions
from demo.concepts import OFF_TARGET, Concept, demo_concepts
from demo.images import STYLES
from demo.npm import default_cache
from demo.site import draw

BASE, JOINED = "laion2B-multi", "laion2B-multi-joined"
AESTHETIC, ENGLISH = "laion2B-multi-aesthetic", "laion2B-en-aesthetic"
PRESETS: dict[str, str] = {
    BASE: "laion-base",
    JOINED: "laion-joined",
    AESTHETIC: "laion-aesthetic",
    ENGLISH: "laion-aesthetic",
}
SIMILARITY_ABOVE: dict[str, float] = {BASE: 0.26, JOINED: 0.26, AESTHETIC: 0.26, ENGLISH: 0.28}
PUNSAFE_BELOW, PWATERMARK_BELOW, AESTHETIC_ABOVE = 0.5, 0.8, 7.0
MIN_SIDE, MAX_ASPECT = 64, 3.0
CERTAIN: tuple[str, ...] = ("th", "ko")  # their script names the language, so the truth can demand a decision
ROW_GROUP_ROWS = 512
FORMAT = "altdiffusion-demo-crawl-2"

# Share of wrong ones among cld3's reliable labels, on these texts (measured, 18 languages and ten others).
_WRONG_LABEL = {"name": 0.17, "words": 0.08, "drawing": 0.08}
_CONFUSED: dict[str, tuple[str, ...]] = {
    "zh": ("ja",), "ja": ("zh",), "th": ("lo",), "ko": ("ja",), "hi": ("mr", "ne"), "uk": ("ru", "bg", "sr"),
    "ru": ("uk", "bg", "mk"), "bg": ("mk", "ru", "sr"), "ar": ("fa", "ur"), "fa": ("ar", "ur"), "tr": ("az", "uz"),
    "vi": ("fr", "haw"), "pl": ("cs", "sk"), "nl": ("af", "de", "fy"), "pt": ("gl", "es"), "it": ("co", "es"),
    "es": ("gl", "ca", "pt"), "de": ("lb", "nl"), "fr": ("ca", "co"), "sv": ("no", "da"), "el": ("el-Latn",),
    "he": ("yi",), "fi": ("et",), "cs": ("sk", "pl"), "hu": ("fi",), "id": ("ms", "jv"), "ro": ("it", "ca"),
}  # fmt: skip
_CLD3 = {"he": "iw"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the crawl with the truth about it.

    `expected`: "accept", "language?" (nothing but the language decision is open), or the reason it must be rejected
    under, at `boundary` "select" or "download". A copy's `group` is the URL that it shares: one row of it stays.
    """

    url: str
    text: str | None
    source: str
    concept: str
    style: str
    language: str
    variant: str
    label: str | None
    width: int  # pixels, true ones (the base release swaps them when written)
    height: int
    kind: str = "plain"
    boundary: str = ""
    expected: str = "language?"
    group: str = ""
    copy: int = 0
    similarity: float | None = None
    punsafe: float | None = None
    pwatermark: float | None = None
    aesthetic: float | None = None

    @property
    def sample_id(self) -> int:
        """LAION's row id."""
        return mmh3.hash64(self.url + (self.text or ""))[0]


TRUTH = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("part", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("sample_id", pa.int64()),
        pa.field("url", pa.string()),
        pa.field("concept", pa.string()),
        pa.field("style", pa.string()),
        pa.field("language", pa.string()),
        pa.field("variant", pa.string()),
        pa.field("label", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("kind", pa.string()),
        pa.field("boundary", pa.string()),
        pa.field("expected", pa.string()),
        pa.field("group", pa.string()),
    ]
)


def build_crawl(cache: Path | None = None, concepts: int = 128, name: str = "crawl") -> Path:
    """Write the crawl to `<cache>/<name>`, unless it is there already, and return its folder.

    The folder appears by one rename: a half-written crawl is never taken for whole.
    """
    root = cache or default_cache()
    folder = root / name
    if (folder / "FORMAT").is_file() and (folder / "FORMAT").read_text() == _format(concepts):
        return folder
    rows = crawl_rows(demo_concepts(concepts, root))
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        fresh = Path(scratch) / "crawl"
        _write(rows, fresh)
        _write_judge(judge_source.drawings(demo_concepts(concepts, root), root), fresh)
        (fresh / "FORMAT").write_text(_format(concepts))
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(fresh, folder)
    return folder


def crawl_rows(concepts: Sequence[Concept]) -> list[Row]:
    """Return all rows, in no particular order."""
    return [*_plain(concepts), *_copies(concepts), *_off_target(concepts), *_select_faults(concepts),
            *_download_faults(concepts)]  # fmt: skip


def truth(cache: Path | None = None, name: str = "crawl") -> pa.Table:
    """Return the truth table (schema `TRUTH`), one row per row of the crawl."""
    return pq.read_table((cache or default_cache()) / name / "truth.parquet", schema=TRUTH)


def labels(cache: Path | None = None, name: str = "crawl") -> pa.Table:
    """Return what every image of the crawl shows and what it is for (schema `judge_source.LABELS`)."""
    return pq.read_table((cache or default_cache()) / name / "labels.parquet", schema=judge_source.LABELS)


def _format(concepts: int) -> str:
    """Return what a folder's crawl was made by: other code or another number of concepts makes another crawl."""
    code = hashlib.sha256()
    for name in ("artists.py", "captions.py", "concepts.py", "crawl.py", "judge_source.py", "npm.py", "site.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    return f"{FORMAT} concepts={concepts} code={code.hexdigest()}\n"


def _uniform(*parts: object) -> float:
    return draw(*parts) / 2**64


def _between(low: float, high: float, *parts: object) -> float:
    return round(low + (high - low) * _uniform(*parts), 6)


def _row(concept: Concept, language: str, variant: str, style: str, **given: Any) -> Row:
    """Return a good row of an image, its fillers drawn; `given` overrides any field."""
    source = given.pop("source", None) or _source(concept.key, language, variant)
    url = given.pop("url", None) or site.image_url(style, concept.key, language, variant)
    width, height = given.pop("size", None) or site.image_size(style, concept.key)
    values: dict[str, Any] = {
        "text": caption(concept, language, variant),
        "label": None if source == ENGLISH else _label(concept.key, language, variant),
        "similarity": _between(0.29, 0.40, url, "similarity"),
        "expected": "accept" if language in CERTAIN else "language?",
    }
    if source != BASE:
        values["punsafe"] = _between(0.0, 0.35, url, "punsafe")
        values["pwatermark"] = _between(0.0, 0.6, url, "pwatermark")
    if source in (AESTHETIC, ENGLISH):
        values["aesthetic"] = _between(7.05, 9.0, url, "aesthetic")
    return Row(
        url=url, source=source, concept=concept.key, style=style, language=language, variant=variant, width=width,
        height=height, **{**values, **given},
    )  # fmt: skip


def _source(*parts: object) -> str:
    return ENGLISH if "en" in parts else (BASE, JOINED, AESTHETIC)[draw(*parts, "source") % 3]


def _label(key: str, language: str, variant: str) -> str:
    label = language
    if _uniform(key, language, variant, "label") < _WRONG_LABEL[variant]:
        label = _CONFUSED[language][draw(key, language, variant, "confused") % len(_CONFUSED[language])]
    return _CLD3.get(label, label)


def _plain(concepts: Sequence[Concept]) -> Iterator[Row]:
    """Yield three texts of each pair that has images, over both styles; English in both styles."""
    for concept, language in itertools.product(concepts, CODES):
        first = draw(concept.key, language, "style") % 2
        for number, variant in enumerate(captions(concept, language)):
            styles = STYLES if language == "en" else (STYLES[(first + number) % 2],)
            for style in styles:
                yield _row(concept, language, variant, style)


def _off_target(concepts: Sequence[Concept]) -> Iterator[Row]:
    """Yield rows in languages that are not wanted; only the language filter can reject them, which is counted."""
    for concept, language in itertools.product(concepts, OFF_TARGET):
        style = STYLES[draw(concept.key, language, "style") % 2]
        yield _row(concept, language, "words", style, kind="off_target", expected="language?")


def _copies(concepts: Sequence[Concept]) -> Iterator[Row]:
    """Yield copies of plain rows of the certain languages: the same row, here or in the base source; another text."""
    for concept, language in itertools.product(concepts, CERTAIN):
        texts = captions(concept, language)
        choice = draw(concept.key, language, "copy") % 4
        if len(texts) < len(VARIANTS) or choice > 1:
            continue
        first = draw(concept.key, language, "style") % 2  # as in _plain: the copied row is number 1, "words"
        original = _row(concept, language, "words", STYLES[(first + 1) % 2])
        if choice == 0:
            for number in range(1 + draw(concept.key, language, "copies") % 2):
                yield dataclasses.replace(
                    original, kind="copy_of_row", boundary="select", expected="duplicate_hash",
                    group=original.url, copy=number + 1, source=BASE if number else original.source,
                )  # fmt: skip
        else:
            yield dataclasses.replace(
                original, text=texts["drawing"], kind="copy_of_url", boundary="select",
                expected="duplicate_url", group=original.url,
            )  # fmt: skip


def _pairs(
    concepts: Sequence[Concept], kind: str, languages: Sequence[str], each: int
) -> Iterator[tuple[Concept, str]]:
    """Yield `each` pairs of every language that have images, keyed by the kind of fault."""
    for language in languages:
        ranked = sorted(concepts, key=lambda concept: draw(kind, concept.key, language))
        usable = (concept for concept in ranked if captions(concept, language))
        yield from ((concept, language) for concept in itertools.islice(usable, each))


def _select_faults(concepts: Sequence[Concept]) -> Iterator[Row]:
    """Yield rows that must not reach the network. Each breaks one rule only."""

    def planted(
        kind: str, reason: str, values: dict[str, Any], sources: Sequence[str] = (), **url: str
    ) -> Iterator[Row]:
        for concept, language in _pairs(concepts, kind, CODES, 2):
            style = STYLES[draw(kind, concept.key, language) % 2]
            source = ENGLISH if language == "en" else None
            if source is None and sources:
                source = sources[draw(kind, concept.key, language, "source") % len(sources)]
            link = url.get("url") or site.image_url(style, concept.key, language, kind)
            yield _row(
                concept, language, "words", style, source=source, kind=kind, boundary="select", expected=reason,
                url=link.format(language=language, key=concept.key), **values,
            )  # fmt: skip

    scored, rated = (JOINED, AESTHETIC), (AESTHETIC,)
    yield from planted("scheme_file", "url_scheme", {}, url="file:///srv/private/{language}/{key}.jpg")
    yield from planted("scheme_ftp", "url_scheme", {}, url="ftp://noto.pictures.example/{language}/{key}.jpg")
    yield from planted("scheme_none", "url_scheme", {}, url="pictures/{language}/{key}.jpg")
    yield from planted("caption_none", "caption", {"text": None})
    yield from planted("caption_empty", "caption", {"text": ""})
    yield from planted("caption_blank", "caption", {"text": " \t\n "})
    yield from planted("caption_digits", "caption", {"text": "20130714 184502"})
    yield from planted("claims_small", "size", {"size": (32, 24)})
    yield from planted("claims_wide", "aspect", {"size": (1280, 96)})
    yield from planted("unlike", "similarity", {"similarity": 0.12})
    yield from planted("unsafe", "punsafe", {"punsafe": 0.93}, scored)
    yield from planted("unsafe_at_threshold", "punsafe", {"punsafe": PUNSAFE_BELOW}, scored)
    yield from planted("unsafe_null", "punsafe", {"punsafe": None}, scored)
    yield from planted("watermark", "pwatermark", {"pwatermark": 0.97}, scored)
    yield from planted("watermark_null", "pwatermark", {"pwatermark": None}, scored)
    yield from planted("ugly", "aesthetic", {"aesthetic": 4.5}, rated)
    yield from planted("ugly_at_threshold", "aesthetic", {"aesthetic": AESTHETIC_ABOVE}, rated)


def _download_faults(concepts: Sequence[Concept]) -> Iterator[Row]:
    """Yield links that only the network can show to be bad, and redirects that are good."""
    costly = {
        "slow": 1,
        "endless": 1,
        "declared": 1,
        "bomb": 2,
    }  # pairs per language, of the certain languages only
    for fault, reason in site.FAULTS.items():
        languages = CERTAIN if fault in costly else CODES
        for concept, language in _pairs(concepts, fault, languages, costly.get(fault, 1)):
            url = f"http://{site.BROKEN}/{fault}/{language}/{concept.key}.jpg"
            yield _row(
                concept, language, "words", "noto", url=url, size=(128, 128), kind=fault, boundary="download",
                expected=reason,
            )  # fmt: skip
    for concept, language in _pairs(concepts, "gone", CERTAIN, 3):
        url = f"http://{site.GONE}/{language}/{concept.key}.jpg"
        yield _row(concept, language, "words", "noto", url=url, kind="gone", boundary="download", expected="connect")
    # not 127.0.0.1, which the demo allow-lists for its server
    addresses = ("127.0.0.2", "10.0.0.7", "169.254.169.254", "[::1]", "[::ffff:192.168.0.1]")
    for address in addresses:
        for concept, language in _pairs(concepts, address, CERTAIN, 1):
            url = f"http://{address}/{language}/{concept.key}.jpg"
            yield _row(
                concept, language, "words", "noto", url=url, kind="private_address", boundary="download",
                expected="blocked_address",
            )  # fmt: skip
    for concept, language in _pairs(concepts, "moved", CODES, 1):
        style = STYLES[draw("moved", concept.key, language) % 2]
        url = f"http://{site.MOVED}/{language}/{style}/{concept.key}.jpg"
        yield _row(concept, language, "words", style, url=url, kind="moved")


def _write(rows: Sequence[Row], folder: Path) -> None:
    parts: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        # the copies of a row are spread over the parts of its source like any other rows
        number = draw(row.url, row.text, row.kind, row.copy, "part") % 2 if row.source == JOINED else 0
        parts.setdefault((row.source, number), []).append(row)
    facts: list[pa.Table] = []
    for (source, number), part in sorted(parts.items()):
        part.sort(key=lambda row: draw(row.url, row.text, row.kind, row.copy, "order"))
        name = f"part-{number:05d}.snappy.parquet"
        (folder / source).mkdir(parents=True, exist_ok=True)
        pq.write_table(
            _table(part, source, number),
            folder / source / name,
            row_group_size=ROW_GROUP_ROWS,
            compression="snappy",
        )
        facts.append(_facts(part, source, name))
    pq.write_table(pa.concat_tables(facts), folder / "truth.parquet", row_group_size=4096)


def _write_judge(made: Sequence[judge_source.Drawing], folder: Path) -> None:
    (folder / judge_source.NAME).mkdir()
    part = folder / judge_source.NAME / "part-00000.snappy.parquet"
    pq.write_table(judge_source.source_table(made), part, row_group_size=ROW_GROUP_ROWS, compression="snappy")
    truth = pq.read_table(folder / "truth.parquet")
    pq.write_table(judge_source.labels(made, truth), folder / "labels.parquet", row_group_size=4096)


def _table(part: Sequence[Row], source: str, number: int) -> pa.Table:
    """Return the part as LAION would have published it."""
    size = {
        BASE: pa.int32(),
        JOINED: (pa.int32(), pa.float64())[number],
        AESTHETIC: pa.int64(),
        ENGLISH: pa.float64(),
    }
    width = pa.array([row.width for row in part], pa.int64()).cast(size[source])
    height = pa.array([row.height for row in part], pa.int64()).cast(size[source])
    swapped = source == BASE

    def floats(name: str, dtype: pa.DataType) -> pa.Array:
        return pa.array([getattr(row, name) for row in part], pa.float64()).cast(dtype)

    columns: dict[str, pa.Array] = {
        "URL": pa.array([row.url for row in part], pa.string()),
        "TEXT": pa.array([row.text for row in part], pa.string()),
        "WIDTH": height if swapped else width,
        "HEIGHT": width if swapped else height,
        "similarity": floats("similarity", pa.float32() if source == AESTHETIC else pa.float64()),
    }
    if source == BASE:
        columns["NSFW"] = pa.array(["UNLIKELY"] * len(part), pa.string())
        columns["LICENSE"] = pa.array(["?"] * len(part), pa.string())
    if source != ENGLISH:
        columns["LANGUAGE"] = pa.array([row.label for row in part], pa.string())
    if source != BASE:
        columns["hash"] = pa.array([row.sample_id for row in part], pa.int64())
        columns["pwatermark"] = floats("pwatermark", pa.float32())
        columns["punsafe"] = floats("punsafe", pa.float32())
    if source in (AESTHETIC, ENGLISH):
        columns["aesthetic"] = floats("aesthetic", pa.float32())
    if source == ENGLISH:
        columns = {name.lower(): column for name, column in columns.items()}
    return pa.table(columns)


def _facts(part: Sequence[Row], source: str, name: str) -> pa.Table:
    place: dict[str, list[Any]] = {
        "source": [source] * len(part),
        "part": [name] * len(part),
        "row": list(range(len(part))),
    }
    columns = [place.get(field.name) or [getattr(row, field.name) for row in part] for field in TRUTH]
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, TRUTH, strict=True)], schema=TRUTH)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.crawl", description="Build the demo's crawl.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    options = parser.parse_args(arguments)
    folder = build_crawl(options.cache)
    table = truth(options.cache)
    parts = sorted(folder.glob("*/*.parquet"))
    print(f"{folder}: {table.num_rows:,} rows in {len(parts)} parts of {len(PRESETS)} sources")


if __name__ == "__main__":
    main()
