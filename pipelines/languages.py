"""The look of a dry run at what identifies languages."""

from __future__ import annotations

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.storage import files


def look_at_languages(config: LanguageConfig, remote: bool) -> list[str]:
    """Load what identifies languages, as a worker would, and return no lines.

    Args:
        remote: whether files on other machines are read too.

    Raises:
        AltDiffusionError: the model or the lists cannot be read, or a language is not one of the model's labels.
    """
    places = [config.model, *([config.words] if config.words_sha256 is not None else [])]
    if remote or all(place.startswith("package://") or files.is_local(place) for place in places):
        LanguageIdentifier(config)
    return []
