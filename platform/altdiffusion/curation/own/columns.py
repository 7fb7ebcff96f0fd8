"""Columns that a config names and a source does not have: found before anything is imported."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from altdiffusion.curation.config import OwnConfig
from altdiffusion.errors import AltDiffusionError


def check_columns(config: OwnConfig, names: Collection[str], what: str, *, has_captions: bool = True) -> None:
    """Check that the columns of language and captions are among those of a source.

    Args:
        names: what the source has, in lower case.
        what: names the source, and how much of it was looked at.
        has_captions: whether captions may be elsewhere, such as in files next to the images.

    Raises:
        AltDiffusionError: all rows would be rejected, because the column is nowhere.
    """
    shown = ", ".join(sorted(names)[:40]) or "none"
    if config.language_column is not None and config.language_column.lower() not in names:
        close = difflib.get_close_matches(config.language_column.lower(), names, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise AltDiffusionError(
            what,
            f"has no column {config.language_column!r} for the language; it has {shown}",
            f"{meant}correct language_column, or set language, or leave both out to have it identified",
        )
    wanted = [name.lower() for name in config.captions]
    wanted += [f"{name}_{code}".lower() for name in wanted for code in config.identify.languages]
    if not has_captions and not set(wanted) & set(names):
        raise AltDiffusionError(
            what,
            f"has no column of captions ({', '.join(config.captions)}); it has {shown}",
            "name the column in captions (--caption-column)",
        )
