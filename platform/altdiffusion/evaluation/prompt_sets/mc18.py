"""MC-18-shaped prompts of our own: six categories, eighteen languages, ten prompts each (mc18.tsv).

AltDiffusion's evaluation (Ye et al.: "AltDiffusion: a multilingual text-to-image diffusion model", 2024) has a
Multilingual-Cultural-18 set, whose prompts are not published. These prompts and the choice of categories are ours: what
belongs to the culture of a language, written in that language, with an English gloss. Results on them are therefore not
comparable with the paper's. A prompt has no counterpart in other languages, so each is a concept of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from altdiffusion.evaluation.prompt_sets.case_rows import CaseRow

CATEGORIES = ("food", "festivals", "clothing", "architecture", "arts", "nature")
"""Dishes and meals; festivals and customs; clothing; architecture and places; arts, crafts and music; nature and
animals as symbols."""
PER_CATEGORY = 10


def mc18() -> Iterator[CaseRow]:
    """Yield the 1,080 prompts; a concept is named mc18-<category>-<language>-<number from 01>."""
    text = resources.files("altdiffusion.evaluation.prompt_sets").joinpath("mc18.tsv").read_text("utf-8")
    counts: dict[tuple[str, str], int] = {}
    for line in text.splitlines()[1:]:
        language, category, prompt, english = line.split("\t")
        number = counts[language, category] = counts.get((language, category), 0) + 1
        yield CaseRow(
            concept=f"mc18-{category}-{language}-{number:02d}", language=language, prompt=prompt, english=english
        )
