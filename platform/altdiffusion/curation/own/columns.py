"""Columns that a config names and a source does not have: found before anything is imported."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from altdiffusion.curation.config import OwnConfig
from altdiffusion.errors import AltDiffusionError


def check_columns(config: OwnConfig, names: Collection[str], what: str, *, has_captions: bool = True) -> None:
    """Check that the columns of language and captions, and those to keep, are among those of a source.

    Args:
        names: what the source has, in lower case.
        what: names the source, and how much of it was looked at.
        has_captions: whether captions may be elsewhere, such as in files next to the images.

    Raises:
        AltDiffusionError: a column is nowhere, so that all rows would be rejected or nothing kept.
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
    lost = [name for name in config.keep if name.lower() not in names]
    if lost:
        problem = f"has no column {lost[0]!r} to keep; it has {shown}"
        raise AltDiffusionError(what, problem, "correct keep, or leave the column out")
    if not has_captions and not _caption_columns(config) & set(names):
        raise AltDiffusionError(
            what,
            f"has no column of captions ({', '.join(config.captions)}); it has {shown}",
            "name the column in captions (--caption-column)",
        )


def asks_for_columns(config: OwnConfig, names: Collection[str]) -> bool:
    """Return whether a column that a config names, other than that of captions, is not among these (lower case)."""
    wanted = [*config.keep, *([config.language_column] if config.language_column is not None else [])]
    return any(name.lower() not in names for name in wanted)


def read_columns(config: OwnConfig) -> set[str]:
    """Return the columns whose text is used, in lower case, whether a source has them or not."""
    language = ["language", "lang"] if config.language_column is None else [config.language_column.lower()]
    return _caption_columns(config) | {*language, *(name.lower() for name in config.keep), "url"}


def _caption_columns(config: OwnConfig) -> set[str]:
    names = [name.lower() for name in config.captions]
    return {*names, *(f"{name}_{code}".lower() for name in names for code in config.identify.languages)}
