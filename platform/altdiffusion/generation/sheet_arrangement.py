"""Which images a contact sheet shows: a grid of languages and concepts, or rows in the dataset's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from altdiffusion.languages import in_order

MOST_COLUMNS = 16
MOST_ROWS = 32


@dataclass(frozen=True)
class Place:
    """Where a row of the prompts or generations is shown."""

    row: int
    concept: str
    language: str


@dataclass(frozen=True)
class Arrangement:
    """The rows that a sheet shows, and what it leaves out."""

    grid: bool
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()


def arrange(rows: Iterable[tuple[str, str | None]]) -> Arrangement:
    """Return which rows a sheet shows, by their ids and languages in the dataset's order.

    It is a grid if every id is `<concept>-<language>` with the row's own language, and no two ids are the same.
    """
    first: list[Place] = []
    by_place: dict[tuple[str, str], Place] = {}
    concepts: dict[str, None] = {}
    grid, count = True, 0
    for row, (name, given) in enumerate(rows):
        count = row + 1
        language = given or "und"
        if row < MOST_COLUMNS * MOST_ROWS:
            first.append(Place(row, name, language))
        ending = f"-{language}"
        concept = name[: -len(ending)]
        grid = grid and bool(concept) and name.casefold().endswith(ending.casefold())
        if grid:
            concepts.setdefault(concept)
            if len(concepts) <= MOST_COLUMNS or concept in itertools.islice(concepts, MOST_COLUMNS):
                grid = by_place.setdefault((concept, language), Place(row, concept, language)).row == row
    if not grid:
        left_out = count > len(first)
        return Arrangement(False, tuple(first), (f"the first {len(first):,} of {count:,} images",) if left_out else ())
    languages = in_order(language for _, language in by_place)
    notes = []
    if len(concepts) > MOST_COLUMNS:
        notes.append(f"the first {MOST_COLUMNS} of {len(concepts):,} concepts")
    if len(languages) > MOST_ROWS:
        notes.append(f"the first {MOST_ROWS} of {len(languages):,} languages")
    shown = set(languages[:MOST_ROWS])
    return Arrangement(True, tuple(p for p in by_place.values() if p.language in shown), tuple(notes))
