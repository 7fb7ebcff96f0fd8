"""Which images a contact sheet shows: a grid of languages and concepts, or rows in the dataset's order."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of a set a sheet shows, and whether as a grid."""

    languages: Sequence[str] = ()
    """Languages of the prompts; empty takes all."""
    ids: Sequence[str] = ()
    """Patterns of the prompts' ids, such as `cat-*`; empty takes all."""
    columns: int | None = None
    """Images per row, in the set's order; None makes a grid where the ids allow it."""

    def has(self, name: str, language: str) -> bool:
        """Return whether a prompt of this id and language is shown."""
        known = not self.languages or language in self.languages
        return known and (not self.ids or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ids))


EVERY = Selection()


@dataclass(frozen=True)
class Arrangement:
    """The rows that a sheet shows, and what it leaves out."""

    grid: bool
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()


def arrange(rows: Iterable[tuple[str, str | None]], selection: Selection = EVERY) -> Arrangement:
    """Return which rows a sheet shows, by their ids and languages in the dataset's order.

    It is a grid if every id is `<concept>-<language>` with the row's own language, no two ids are the same, and the
    selection does not state the columns.
    """
    first: list[Place] = []
    by_place: dict[tuple[str, str], Place] = {}
    concepts: dict[str, None] = {}
    grid, count = selection.columns is None, 0
    most = MOST_ROWS * (selection.columns or MOST_COLUMNS)
    for row, (name, given) in enumerate(rows):
        language = given or "und"
        if not selection.has(name, language):
            continue
        count += 1
        if count <= most:
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
