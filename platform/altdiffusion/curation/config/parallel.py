"""Where translated texts come from, which pairs are kept, and how they become token ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational

Column = int | str
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """One parallel corpus, or one of English texts alone.

    `tsv` is a table of tab-separated lines without quotes (WikiMatrix, CCMatrix, CCAligned), `moses` two files with
    one sentence a line (OPUS), `parquet` any table. Text files may be compressed (.gz, .xz, .bz2, .zst).
    """

    name: str
    uri: str = operational()
    """Glob of the parts on any fsspec URI, in the order of their names; for `moses` the English files."""
    format: Literal["tsv", "moses", "parquet"]
    language: str
    """Language of the translations; `en` for English texts alone, which the student reads as well."""
    translation_uri: str | None = operational(None)
    """For `moses`: the translations' files, as many as English ones."""
    english: Column = 0
    """Column of the English text: a number from 0 in `tsv`, a name in `parquet`."""
    translation: Column | None = None
    """Column of the translation; none for English alone."""
    score: Column | None = None
    """Column of the source's own score of a pair, if it has one (LASER margin)."""
    score_above: float | None = None
    """On the source's scale, strict; WikiMatrix recommends 1.04."""
    rows_per_unit: int = 500_000

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name: is not usable; use up to 100 letters, digits, '.', '_' and '-'")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 500000")
        if (self.format == "moses") != (self.translation_uri is not None):
            raise ValueError("translation_uri: goes with format moses, which has two files; give both or neither")
        if self.format == "moses" and (self.translation is not None or self.score is not None):
            raise ValueError("translation: moses files have no columns; leave translation and score out")
        if self.format != "moses" and (self.language == "en") != (self.translation is None):
            raise ValueError("translation: is missing; name its column (only texts with language en have none)")
        wanted = {"tsv": int, "parquet": str}.get(self.format)
        for key in ("english", "translation", "score"):
            value = getattr(self, key)
            if wanted is not None and value is not None and (not isinstance(value, wanted) or value in (-1, "")):
                raise ValueError(f"{key}: is no column of {self.format}; use a number from 0 in tsv, a name in parquet")
        if self.score_above is not None and self.score is None:
            raise ValueError("score_above: needs the scores' column; give score")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """Which pairs are kept."""

    clean_texts: bool = True
    """Whether markup and mojibake are taken out of both sides, as of captions (`SelectConfig.clean_captions`)."""
    max_chars: int = 1024
    """Of either side: longer texts are documents; the encoders read 77 tokens."""
    max_ratio: float = 3.0
    """Letters of the longer side / letters of the shorter, at most; a syllable or ideograph counts as three."""
    min_letters: int = 2
    """Of either side."""
    check_languages: bool = True
    """Whether both sides have to be in the language that the corpus says."""
    buckets: int = 64
    """Hash buckets of English texts, one shard each: a unit of the second step takes one into memory."""
    held_out: int = 0
    """The last so many buckets become a dataset of their own: no English text is in both."""

    def __post_init__(self) -> None:
        if self.max_chars < 1 or self.min_letters < 1:
            raise ValueError("max_chars: and min_letters must be at least 1; give e.g. 1024 and 2")
        if self.max_ratio < 1:
            raise ValueError("max_ratio: is longer / shorter and so never below 1; give e.g. 3.0")
        if not 1 <= self.buckets <= 4096:
            raise ValueError("buckets: must be between 1 and 4096; give e.g. 64")
        if not 0 <= self.held_out < self.buckets:
            raise ValueError("held_out: must leave at least one bucket to train on; give e.g. 1 of 64")


@dataclass(frozen=True, kw_only=True, slots=True)
class IdsConfig:
    """How texts become token ids."""

    tokenizer: str = operational()
    """Local folder of the student's tokenizer."""
    tokenizer_digest: str | None = None
    max_length: int = 77
    teacher_tokenizer: str = operational()
    """Local folder of the base's tokenizer, which is the teacher's."""
    teacher_tokenizer_digest: str | None = None
    teacher_max_length: int = 77

    def __post_init__(self) -> None:
        if self.max_length < 2 or self.teacher_max_length < 2:
            raise ValueError("max_length: must hold a beginning and an end; give e.g. 77")
