"""Prompts in the 18 languages, each written as one would write it in that language (prompts.tsv)."""

from __future__ import annotations

from importlib import resources


def examples() -> dict[str, dict[str, str]]:
    """Return the prompts, English prompt -> language -> prompt."""
    text = resources.files("altdiffusion.play").joinpath("prompts.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    languages = [row[0] for row in rows]
    columns = zip(*(row[1:] for row in rows), strict=True)
    return {column[languages.index("en")]: dict(zip(languages, column, strict=True)) for column in columns}
