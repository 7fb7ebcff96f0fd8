"""The contact sheet of a set of generations: every image with its prompt, in a grid of languages and concepts.

Ids of the form `<concept>-<language>` give one row per language and one column per concept. Other ids give rows of
images in the dataset's order, each with its prompt, id and language. A sheet shows a bounded number of images, and
states on itself what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.sheet_arrangement import EVERY, MOST_COLUMNS, Arrangement, Selection, arrange
from altdiffusion.generation.sheet_page import Band, Cell, Page, row_labels
from altdiffusion.generation.typeface import Typefaces, named, plain
from altdiffusion.languages import in_order
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version

ZOOM = 2.0
_MOST_CHARACTERS = 500
"""More of a caption never fits."""


def check_sheet(
    fonts_dir: str | Path,
    prompts: Iterable[tuple[str, str | None, str]],
    *,
    file: str | None = None,
    selection: Selection = EVERY,
) -> list[str]:
    """Check everything that a sheet needs, before its images are drawn, and return what it will note on itself.

    Args:
        fonts_dir: folder of fonts.
        prompts: id, language and prompt of every image, in order.
        file: the PNG to be written.
        selection: the images that are to be shown.

    Raises:
        AltDiffusionError: a package or the fonts are missing, no font has a character of the prompts, or the file
            cannot be written.
    """
    if file is not None:
        files.check_local_output(f"contact sheet {file}", file)
    faces = Typefaces(fonts_dir)
    rows = list(prompts)
    arrangement = arrange(((name, language) for name, language, _ in rows), selection)
    texts = [(_shortened(rows[place.row][2]), place.language) for place in arrangement.places]
    labels = [label for place in arrangement.places for label in row_labels(place.language)]
    symbols = faces.require([*labels, ("0123456789ABCDEF", "en"), *texts])
    return [*arrangement.notes, *_stand_in_notes(symbols)]


def write_sheet(
    version: Version,
    file: str | Path,
    fonts: str | Path | Typefaces,
    *,
    cell: int = 96,
    title: str = "",
    zoom: float = ZOOM,
    selection: Selection = EVERY,
) -> list[str]:
    """Draw the sheet of a generations version as a PNG file, and return what it notes on itself.

    Args:
        fonts: folder of fonts, or what was read of one, for several sheets.
        selection: the images that are shown.

    Raises:
        AltDiffusionError: there are no images, a package or the fonts are missing, or no font has a character.
    """
    names = version.read(["id", "language"])
    arrangement = arrange(zip(names["id"].to_pylist(), names["language"].to_pylist(), strict=True), selection)
    columns = ["prompt", "image", "seed", "checkpoint", "steps", "guidance_scale", "sampler"]
    rows = version.read_rows([place.row for place in arrangement.places], columns)
    cells = [
        Cell(concept=place.concept, language=place.language, caption=row["prompt"], image=row["image"])
        for place, row in zip(arrangement.places, rows, strict=True)
    ]
    subtitle = _subtitle(rows, arrangement) if rows else ""
    page = _page(fonts, cells, arrangement.grid, cell, title, subtitle, arrangement.notes, selection.columns)
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page.png(zoom))
    return page.notes


def contact_sheet(
    cells: Sequence[Cell],
    fonts_dir: str | Path,
    *,
    grid: bool = True,
    cell: int = 96,
    title: str = "",
    subtitle: str = "",
    zoom: float = ZOOM,
) -> bytes:
    """Return the sheet as PNG bytes.

    Args:
        cells: images in any order.
        fonts_dir: folder of fonts that together cover all texts.
        grid: whether columns are concepts, in order of first appearance, and rows are languages, in the project's
            order. The place of a missing image stays empty. Otherwise images are in the given order.
        cell: side of an image on the sheet.
        zoom: pixels of the PNG per unit of the sheet.
    """
    rows = ((f"{entry.concept}-{entry.language}" if grid else entry.concept, entry.language) for entry in cells)
    arrangement = arrange(rows)
    shown = [cells[place.row] for place in arrangement.places]
    return _page(fonts_dir, shown, grid and arrangement.grid, cell, title, subtitle, arrangement.notes).png(zoom)


def _page(
    fonts: str | Path | Typefaces,
    cells: Sequence[Cell],
    grid: bool,
    cell: int,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    columns: int | None = None,
) -> Page:
    if not cells:
        raise AltDiffusionError("the contact sheet", "has no images", "generate some first")
    faces = fonts if isinstance(fonts, Typefaces) else Typefaces(fonts)
    cells = [replace(entry, caption=_shortened(entry.caption)) for entry in cells]
    bands, headings = _grid(cells) if grid else _in_rows(cells, columns)
    title = title or ("One model, the same things, in every language" if grid else "Contact sheet")
    page = Page(faces=faces, cell=cell, title=title, subtitle=subtitle, headings=headings, bands=bands, labelled=grid)
    symbols = faces.require([(title, "en"), (subtitle, "en"), *((entry.caption, entry.language) for entry in cells)])
    page.notes = [*notes, *_stand_in_notes(symbols)]
    return page


def _grid(cells: Sequence[Cell]) -> tuple[list[Band], list[tuple[str, str]]]:
    """Return one row per language, and the headings of the concepts: the English prompts, else the ids' names."""
    concepts = list(dict.fromkeys(entry.concept for entry in cells))
    by_place = {(entry.concept, entry.language): entry for entry in cells}
    bands = [
        Band(language, tuple(by_place.get((concept, language)) for concept in concepts))
        for language in in_order(entry.language for entry in cells)
    ]
    english = ((concept, by_place.get((concept, "en"))) for concept in concepts)
    return bands, [(entry.caption if entry else concept, "en") for concept, entry in english]


def _in_rows(cells: Sequence[Cell], columns: int | None) -> tuple[list[Band], list[tuple[str, str]]]:
    """Return rows of images in the given order."""
    width = columns or min(MOST_COLUMNS, len(cells), max(6, math.ceil(math.sqrt(1.5 * len(cells)))))
    return [Band("", tuple(cells[start : start + width])) for start in range(0, len(cells), width)], []


def _shortened(caption: str) -> str:
    """Return what of a caption can be seen, on one line; without it, a prompt of a book's length would take minutes."""
    return plain(caption[: 2 * _MOST_CHARACTERS])[:_MOST_CHARACTERS]


def _stand_in_notes(symbols: Sequence[str]) -> list[str]:
    """Return the note on symbols that no font has, without the symbols themselves."""
    if not symbols:
        return []
    return [f"not in the fonts, shown as boxes with code points: {named(symbols, shown=False)}"]


def _subtitle(rows: Sequence[dict[str, Any]], arrangement: Arrangement) -> str:
    """Return the model and the settings, as far as they are those of every image."""
    checkpoint, _, digest = str(rows[0]["checkpoint"]).partition("@")
    settings = {(row["sampler"], row["steps"], row["guidance_scale"]) for row in rows}
    parts = [f"{checkpoint.partition(':')[2]} @ {digest[:12]}"]
    if len(settings) == 1:
        ((sampler, steps, guidance),) = settings
        parts.append(f"{sampler}, {steps} steps, guidance {guidance:g}")
    else:
        parts.append(f"{len(settings)} different settings")
    seeds: dict[str, set[Any]] = {}
    for place, row in zip(arrangement.places, rows, strict=True):
        seeds.setdefault(place.concept, set()).add(row["seed"])
    if arrangement.grid and all(len(found) == 1 for found in seeds.values()):
        parts.append("the same noise in every row")
    return "   ·   ".join(parts)
