"""Rows of images: identities, captions and languages of samples, as the IMAGES schema wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.images.color import PROFILED
from altdiffusion.curation.images.decoder_pool import Decoded
from altdiffusion.curation.language.clean import clean_captions, tidy_captions
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.own.sample import Caption, Sample, own_url
from altdiffusion.curation.rejects import CAPTION, LANGUAGE, LANGUAGE_LABEL, Refused
from altdiffusion.curation.web.blocklist import Blocklist
from altdiffusion.languages import code_of, language_hint, language_of, normalised_tag
from altdiffusion.records import IMAGES, KEPT
from altdiffusion.urls import url_keys

_SHOWN = 80
"""Characters of a caption that was rejected for its language."""
_SCORES: dict[str, tuple[str, ...]] = {
    "similarity": ("similarity",), "punsafe": ("punsafe",), "pwatermark": ("pwatermark",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
}  # fmt: skip
_SIZES: dict[str, tuple[str, ...]] = {"width": ("original_width", "width"), "height": ("original_height", "height")}
Dropped = tuple["Row", Refused, str | None]
"""A row, why it is dropped, and its language where that is known."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image with one of its captions."""

    number: int
    """Its number within the unit."""
    url: str
    caption: Caption
    fields: Mapping[str, Any]
    sha256: str
    decoded: Decoded | None

    @property
    def sample_id(self) -> int:
        """The row id, computed as LAION's are."""
        return int(mmh3.hash64(self.url + self.caption.text)[0])


def blocks(blocklist: Blocklist, row: Row) -> bool:
    """Return whether a blocklist names a row's link, host or id."""
    keys = url_keys(pa.array([row.url]))
    return bool(np.asarray(blocklist.blocks(keys, pa.array([row.sample_id], pa.int64()))).any())


class OwnRows:
    """Makes rows of samples.

    Args:
        identifier: None where every row's language is stated.
    """

    def __init__(self, config: OwnConfig, identifier: LanguageIdentifier | None) -> None:
        self._config, self._identifier = config, identifier

    def rows(self, sample: Sample, decoded: Decoded | None, sha256: str, first: int) -> list[Row]:
        """Return one row per caption, or one without text; `first` is the number of the first one."""
        stated = sample.fields.get("url")
        is_link = isinstance(stated, str) and stated.lower().startswith(("http://", "https://"))
        url = str(stated) if is_link else own_url(self._config.name, sample.name)
        return [
            Row(number=number, url=url, caption=caption, fields=sample.fields, sha256=sha256, decoded=decoded)
            for number, caption in enumerate(sample.captions or [Caption(text="")], first)
        ]

    def table(self, rows: Sequence[Row]) -> tuple[pa.Table, list[Dropped]]:
        """Return the accepted rows, IMAGES with `kept` (JSON), and the others with their reasons."""
        config = self._config
        published = pa.array([row.caption.text for row in rows], pa.string())
        captions = (clean_captions if config.clean_captions else tidy_captions)(published)
        labels = [self._label(row) for row in rows]
        language, score, why = self._languages(captions, labels)
        spoken = pc.fill_null(pc.match_substring_regex(captions, r"\p{L}"), False).to_pylist()
        lengths = pc.utf8_length(captions).to_pylist()
        dropped: list[Dropped] = []
        good: list[int] = []
        for place, row in enumerate(rows):
            if not spoken[place] or lengths[place] > config.max_caption_chars:
                dropped.append((row, Refused(CAPTION), None))
            elif language[place] is None:
                refused, guess = why[place]
                dropped.append((row, refused, guess))
            else:
                good.append(place)
        taken = [rows[place] for place in good]
        columns = self._columns(taken)
        kept = captions.take(pa.array(good, pa.int64()))
        columns |= {
            "caption": kept,
            "original_caption": pa.array(
                [row.caption.text if row.caption.text != text else None
                 for row, text in zip(taken, kept.to_pylist(), strict=True)], pa.string()
            ),
            "language": pa.array([language[place] for place in good], pa.string()),
            "language_score": pa.array([score[place] for place in good], pa.float32()),
            "source_language": pa.array([labels[place] for place in good], pa.string()),
        }  # fmt: skip
        names = [*IMAGES.names, "kept"]
        schema = pa.schema([*IMAGES, KEPT.field("kept")])
        return pa.table([columns[name].cast(schema.field(name).type) for name in names], schema=schema), dropped

    def _label(self, row: Row) -> str | None:
        return self._config.language if self._config.language is not None else row.caption.label

    def _languages(
        self, captions: pa.Array, labels: Sequence[str | None]
    ) -> tuple[list[str | None], list[float], list[tuple[Refused, str | None]]]:
        """Return each row's language (None: rejected), its confidence, and why it is rejected if it is."""
        config, accepted = self._config, self._config.identify.languages
        codes = [None if label is None else _accepted(label, accepted) for label in labels]
        language: list[str | None] = list(codes)
        score = [1.0] * len(labels)
        why = [(_unstated(label, accepted), None if label is None else label[:20]) for label in labels]
        if config.trust_labels:
            asked = [place for place, label in enumerate(labels) if label is None]
        else:
            asked = list(range(len(labels)))
        if self._identifier is None or not asked:
            return language, score, list(why)
        places = pa.array(asked, pa.int64())
        hints = pa.array([codes[place] for place in asked], pa.string())
        found, sure, guess = self._identifier.identify(captions.take(places), hints)
        texts = pc.utf8_slice_codeunits(captions.take(places), 0, _SHOWN).to_pylist()
        for number, place in enumerate(asked):
            language[place], score[place] = found[number].as_py(), sure[number].as_py()
            why[place] = (Refused(LANGUAGE, texts[number] or ""), guess[number].as_py())
        return language, score, list(why)

    def _columns(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return all columns but those of caption and language."""
        decoded = [row.decoded for row in rows if row.decoded is not None]
        assert len(decoded) == len(rows)
        store, count = self._config.store, len(rows)
        columns: dict[str, Any] = {
            "sample_id": pa.array([row.sample_id for row in rows], pa.int64()),
            "url": pa.array([row.url for row in rows], pa.string()),
            "source": pa.array([self._config.name] * count, pa.string()),
            "image": pa.array([one.body for one in decoded], pa.binary()),
            "image_format": pa.array([store.encode_format] * count, pa.string()),
            "image_sha256": pa.array([row.sha256 for row in rows], pa.string()),
            "phash": pa.array([one.phash for one in decoded], pa.int64()),
            "color_profile": pa.array(
                [one.profiled if one.profiled in PROFILED else None for one in decoded], pa.string()
            ),
            "kept": pa.array([_kept(row.fields, self._config.keep) for row in rows], pa.string()),
        }
        for side in ("width", "height"):
            columns[f"original_{side}"] = pa.array([getattr(one, f"original_{side}") for one in decoded], pa.int32())
            columns[f"stored_{side}"] = pa.array([getattr(one, side) for one in decoded], pa.int32())
        for name, places in _SIZES.items():
            columns[name] = pa.array([_whole(_first(row.fields, places)) for row in rows], pa.int32())
        for name, places in _SCORES.items():
            columns[name] = pa.array([_number(_first(row.fields, places)) for row in rows], pa.float32())
        columns["aesthetic_score"] = columns["aesthetic"]
        for field in IMAGES:
            columns.setdefault(field.name, pa.nulls(count, field.type))
        return columns


def _accepted(label: str, accepted: Sequence[str]) -> str | None:
    """Return the accepted language of a label: `uk-UA` is `uk`, but `ua` is not a tag of Ukrainian."""
    tag = normalised_tag(label)
    if tag is None:
        return None
    return tag if tag in accepted else language_of(tag) if language_of(tag) in accepted else None


def _unstated(label: str | None, accepted: Sequence[str]) -> Refused:
    if label is None:
        return Refused(LANGUAGE_LABEL, "no language is stated")
    meant = code_of(label, accepted)
    hint = f"; did you mean {meant}?" if meant is not None else ""
    return Refused(LANGUAGE_LABEL, f"{label[:60]} {language_hint(label, accepted)[0]}{hint}")


def _kept(fields: Mapping[str, Any], keep: Sequence[str]) -> str:
    chosen = {name: fields.get(name.lower()) for name in keep}
    return json.dumps(chosen, ensure_ascii=False, sort_keys=True, default=str)


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number < 2**31 else None
