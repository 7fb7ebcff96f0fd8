"""Where translated texts come from, which pairs are kept, and how they become token ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import PLAIN_NAME, Checked, Invalid, at_least, between

Column = int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig(Checked):
    """One parallel corpus, or one of English texts alone.

    `tsv` is a table of tab-separated lines without quotes (WikiMatrix, CCMatrix, CCAligned), `moses` is two files
    with one sentence per line (OPUS), `parquet` is any table. Text files may be compressed (.gz, .xz, .bz2, .zst).
    """

    name: Annotated[str, PLAIN_NAME]
    """Name of the corpus in the rows and in lineage."""
    uri: str = operational()
    """Glob of the parts on any fsspec URI, in the order of their names; for `moses` the English files."""
    format: Literal["tsv", "moses", "parquet"]
    """How the file is written."""
    language: str
    """Language of the translations; `en` for English texts alone, which the student reads as well."""
    translation_uri: str | None = operational(None)
    """For `moses`: the files of the translations, as many as of the English texts."""
    english: Column = 0
    """Column of the English text: a number from 0 in `tsv`, a name in `parquet`."""
    translation: Column | None = None
    """Column of the translation; none for English alone."""
    score: Column | None = None
    """Column of the source's own score of a pair, if it has one (LASER margin)."""
    score_above: float | None = None
    """On the source's scale, strict; WikiMatrix recommends 1.04."""
    rows_per_unit: Annotated[int, at_least(1)] = 500_000
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""

    def conflicts(self) -> Iterator[Invalid]:
        if (self.format == "moses") != (self.translation_uri is not None):
            yield Invalid("translation_uri", "belongs to format moses, which has two files", "give both or neither")
        if self.format == "moses" and (self.translation is not None or self.score is not None):
            yield Invalid(
                "translation", "has no place in moses files, which have no columns", "leave out translation and score"
            )
        if self.format != "moses" and (self.language == "en") != (self.translation is None):
            yield Invalid("translation", "is missing", "name its column (only texts with language en have none)")
        wanted = {"tsv": int, "parquet": str}.get(self.format)
        for key in ("english", "translation", "score"):
            value = getattr(self, key)
            if wanted is not None and value is not None and (not isinstance(value, wanted) or value in (-1, "")):
                yield Invalid(key, f"is not a column of {self.format}", "use a number from 0 in tsv, a name in parquet")
        if self.score_above is not None and self.score is None:
            yield Invalid("score_above", "needs the scores' column", "give score")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig(Checked):
    """Which pairs are kept."""

    clean_texts: bool = True
    """Whether markup and mojibake are taken out of both sides, as of captions (`SelectConfig.clean_captions`)."""
    max_chars: Annotated[int, at_least(1)] = 1024
    """Characters of either side, at most: longer texts are documents; the encoders read 77 tokens."""
    max_ratio: Annotated[float, at_least(1, "it is the longer text / the shorter; give e.g. 3.0")] = 3.0
    """Letters of the longer side / letters of the shorter, at most; a syllable or ideograph counts as three."""
    min_letters: Annotated[int, at_least(1)] = 2
    """Letters of either side, at least."""
    check_languages: bool = True
    """Whether both sides have to be in the language that the corpus states."""
    buckets: Annotated[int, between(1, 4096)] = 64
    """Hash buckets of English texts, one shard each: a unit of the second step holds one in memory."""
    held_out: Annotated[int, at_least(0)] = 0
    """This many buckets, the last ones, become a dataset of their own: no English text is in both."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.held_out >= self.buckets:
            yield Invalid("held_out", "leaves no bucket to train on", "give fewer than buckets, e.g. 1 of 64")


@dataclass(frozen=True, kw_only=True, slots=True)
class IdsConfig(Checked):
    """How texts become token ids."""

    tokenizer: str = operational()
    """Folder, on this machine or any fsspec URI, of the student's tokenizer."""
    tokenizer_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    max_length: Annotated[int, at_least(2, "a beginning and an end take two; give e.g. 77")] = 77
    """Token ids per text for the student; texts are padded and truncated to this."""
    teacher_tokenizer: str = operational()
    """Folder, on this machine or any fsspec URI, of the base's tokenizer, which is the teacher's."""
    teacher_tokenizer_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    teacher_max_length: Annotated[int, at_least(2, "a beginning and an end take two; give e.g. 77")] = 77
    """Token ids per text for the teacher."""
