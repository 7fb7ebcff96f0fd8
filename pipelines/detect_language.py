"""Curation's language identifier for prompts: generation may not import curation, so that the pipeline lends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from altdiffusion.config import semantic
from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.generation.prompt_checks import Detect


@dataclass(frozen=True, kw_only=True)
class LanguageDetector:
    """Makes what finds the language of texts; it is picklable, and loads the model when it is called."""

    wanted: bool
    """Whether languages are found at all."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for a step's fingerprint: nothing where no language is found."""
        return {"language": semantic(LanguageConfig())} if self.wanted else {}

    def __call__(self) -> Detect:
        """Load the identifier, with curation's own settings for its 18 languages."""
        identifier = LanguageIdentifier(LanguageConfig())

        def detect(texts: pa.Array) -> pa.Array:
            return identifier.identify(texts, pa.nulls(len(texts), pa.string()))[0]

        return detect
