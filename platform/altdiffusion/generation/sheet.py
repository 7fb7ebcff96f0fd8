"""The contact sheet of a set of generations: every image with its prompt, in a grid of languages and concepts.

Ids of the form `<concept>-<language>` give one row per language and one column per concept. Other ids give rows of
images in the dataset's order, each with its prompt, id and language. A sheet shows a bounded number of images, and
states on itself what it leaves out.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.typeface import BOLD, REGULAR, Box, Typefaces, named, plain, right_to_left
from altdiffusion.languages import BY_CODE, in_order
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version

ZOOM = 2.0
MOST_COLUMNS = 16
MOST_ROWS = 32
MOST_PIXELS = 64_000_000
"""A larger sheet is drawn at a smaller zoom."""
_INK, _GREY, _LINE, _PAPER = "#1c2024", "#60646c", "#e4e5e9", "#ffffff"
_LABEL_WIDTH, _GAP, _MARGIN, _BASE, _LEADING = 132, 14, 28, 14, 12.5
_SIZES = (11.0, 10.0, 9.0)
_BETWEEN, _ROUND, _LEAST_WIDTH = 10, 8, 420
_CAPTION_LINES, _NOTE_LINES = 2, 3
_MOST_CHARACTERS = 500
"""More of a caption never fits."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of the sheet."""

    concept: str
    """The column; in a sheet in the dataset's order, the id."""
    language: str
    """The row: one of the project's languages, or any BCP 47 tag."""
    caption: str
    image: bytes
    """Encoded image."""


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


def check_sheet(
    fonts_dir: str | Path, prompts: Iterable[tuple[str, str | None, str]], *, file: str | None = None
) -> list[str]:
    """Check everything that a sheet needs, before its images are drawn, and return what it will note on itself.

    Args:
        fonts_dir: folder of fonts.
        prompts: id, language and prompt of every image, in order.
        file: the PNG to be written.

    Raises:
        AltDiffusionError: a package or the fonts are missing, no font has a character of the prompts, or the file
            cannot be written.
    """
    if file is not None:
        files.check_local_output(f"contact sheet {file}", file)
    faces = Typefaces(fonts_dir)
    rows = list(prompts)
    arrangement = arrange((name, language) for name, language, _ in rows)
    texts = [(_shortened(rows[place.row][2]), place.language) for place in arrangement.places]
    labels = [label for place in arrangement.places for label in _labels(place.language)]
    symbols = faces.require([*labels, ("0123456789ABCDEF", "en"), *texts])
    return [*arrangement.notes, *_stand_in_notes(symbols)]


def write_sheet(
    version: Version, file: str | Path, fonts_dir: str | Path, *, cell: int = 96, title: str = "", zoom: float = ZOOM
) -> list[str]:
    """Draw the sheet of a generations version as a PNG file, and return what it notes on itself.

    Raises:
        AltDiffusionError: there are no images, a package or the fonts are missing, or no font has a character.
    """
    names = version.read(["id", "language"])
    arrangement = arrange(zip(names["id"].to_pylist(), names["language"].to_pylist(), strict=True))
    columns = ["prompt", "image", "seed", "checkpoint", "steps", "guidance_scale", "sampler"]
    rows = version.read_rows([place.row for place in arrangement.places], columns)
    cells = [
        Cell(concept=place.concept, language=place.language, caption=row["prompt"], image=row["image"])
        for place, row in zip(arrangement.places, rows, strict=True)
    ]
    subtitle = _subtitle(rows, arrangement) if rows else ""
    page = _page(fonts_dir, cells, arrangement.grid, cell, title, subtitle, arrangement.notes)
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
    fonts_dir: str | Path, cells: Sequence[Cell], grid: bool, cell: int, title: str, subtitle: str, notes: Sequence[str]
) -> _Page:
    if not cells:
        raise AltDiffusionError("the contact sheet", "has no images", "generate some first")
    faces = Typefaces(fonts_dir)
    cells = [replace(entry, caption=_shortened(entry.caption)) for entry in cells]
    bands, headings = _grid(cells) if grid else _in_rows(cells)
    title = title or ("One model, the same things, in every language" if grid else "Contact sheet")
    page = _Page(faces=faces, cell=cell, title=title, subtitle=subtitle, headings=headings, bands=bands, labelled=grid)
    symbols = faces.require([(title, "en"), (subtitle, "en"), *((entry.caption, entry.language) for entry in cells)])
    page.notes = [*notes, *_stand_in_notes(symbols)]
    return page


@dataclass(frozen=True)
class _Band:
    """One row of the sheet."""

    language: str
    cells: tuple[Cell | None, ...]


def _grid(cells: Sequence[Cell]) -> tuple[list[_Band], list[tuple[str, str]]]:
    """Return one row per language, and the headings of the concepts: the English prompts, else the ids' names."""
    concepts = list(dict.fromkeys(entry.concept for entry in cells))
    by_place = {(entry.concept, entry.language): entry for entry in cells}
    bands = [
        _Band(language, tuple(by_place.get((concept, language)) for concept in concepts))
        for language in in_order(entry.language for entry in cells)
    ]
    english = ((concept, by_place.get((concept, "en"))) for concept in concepts)
    return bands, [(entry.caption if entry else concept, "en") for concept, entry in english]


def _in_rows(cells: Sequence[Cell]) -> tuple[list[_Band], list[tuple[str, str]]]:
    """Return rows of images in the given order."""
    width = min(MOST_COLUMNS, len(cells), max(6, math.ceil(math.sqrt(1.5 * len(cells)))))
    return [_Band("", tuple(cells[start : start + width])) for start in range(0, len(cells), width)], []


@dataclass(kw_only=True)
class _Page:
    """The layout of the sheet, in units of the SVG. Vertical places of texts are those of their baselines."""

    faces: Typefaces
    cell: int
    title: str
    subtitle: str
    headings: list[tuple[str, str]]
    bands: list[_Band]
    labelled: bool
    notes: list[str] = field(default_factory=list)

    def png(self, zoom: float) -> bytes:
        import resvg_py

        columns = max(len(band.cells) for band in self.bands)
        left = _MARGIN + (_LABEL_WIDTH + 16 if self.labelled else 0)
        width = max(left + columns * (self.cell + _GAP) - _GAP + _MARGIN, _LEAST_WIDTH)
        room = width - 2 * _MARGIN
        notes = [line for note in self.notes for line in self.faces.lines(note, "en", REGULAR, 11, room, _NOTE_LINES)]
        parts, top = self._head(left, room)
        below = _LEADING * (_CAPTION_LINES if self.labelled else _CAPTION_LINES + 1) + _BETWEEN
        bottom = top + len(self.bands) * (self.cell + below)
        height = math.ceil(bottom + 15 * len(notes) + _MARGIN - 12)
        zoom = min(zoom, math.sqrt(MOST_PIXELS / (width * height)))
        pixels = max(1, round(self.cell * zoom))
        for number, band in enumerate(self.bands):
            parts += self._band(band, left, top + number * (self.cell + below), pixels)
        for number, line in enumerate(notes):
            parts.append(self._text(_MARGIN, bottom + 14 + 15 * number, line, "en", 11, colour=_GREY))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}"><rect width="100%" height="100%" fill="{_PAPER}"/>'
            f"<defs>{self.faces.definitions()}</defs>{''.join(parts)}</svg>"
        )
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, zoom=zoom))

    def _head(self, left: float, room: float) -> tuple[list[str], float]:
        """Return title, subtitle and headings, and the top of the first row."""
        parts, top = [], float(_MARGIN)
        for line in self.faces.lines(self.title, "en", BOLD, 22, room, 2):
            parts.append(self._text(_MARGIN, top + 20, line, "en", 22, weight=BOLD))
            top += 26
        for line in self.faces.lines(self.subtitle, "en", REGULAR, 11.5, room, 2):
            parts.append(self._text(_MARGIN, top + 16, line, "en", 11.5, colour=_GREY))
            top += 16
        wrapped = [self.faces.lines(name, language, BOLD, 12, self.cell, 2) for name, language in self.headings]
        top += 20 + 14 * max(map(len, wrapped), default=0)
        for column, lines in enumerate(wrapped):
            for number, text in enumerate(lines):
                base = top - 10 - 14 * (len(lines) - 1 - number)
                parts.append(self._text(left + column * (self.cell + _GAP), base, text, "en", 12, weight=BOLD))
        return parts, top

    def _band(self, band: _Band, left: float, top: float, pixels: int) -> list[str]:
        """Return one row; its images have `pixels` pixels a side."""
        parts = [self._label(band.language, left - 16, top + self.cell / 2)] if self.labelled else []
        for column, entry in enumerate(band.cells):
            at = left + column * (self.cell + _GAP)
            side = self.cell - 1
            frame = (
                f'<rect x="{at + 0.5:g}" y="{top + 0.5:g}" width="{side}" height="{side}" rx="{_ROUND}" fill="none" '
            )
            if entry is None:
                parts.append(f'{frame}stroke="{_LINE}" stroke-dasharray="4 4"/>')
                continue
            uri = _data_uri(entry, pixels, round(_ROUND * pixels / self.cell))
            parts.append(
                f'<image x="{at:g}" y="{top:g}" width="{self.cell}" height="{self.cell}" xlink:href="{uri}"/>'
                f'{frame}stroke="{_LINE}"/>'
            )
            parts.append(self._caption(at, top + self.cell, entry))
        return parts

    def _label(self, language: str, right: float, middle: float) -> str:
        (native, code), *rest = _labels(language)
        size = next((size for size in (17, 14) if self.faces.width(native, code, BOLD, size) <= _LABEL_WIDTH), 11)
        native = self.faces.lines(native, code, BOLD, size, _LABEL_WIDTH, 1)[0]
        parts = [self._text(right, middle - 1 if rest else middle + 6, native, code, size, weight=BOLD, anchor="end")]
        for name, code in rest:
            parts.append(self._text(right, middle + 17, name, code, 11.5, colour=_GREY, anchor="end"))
        return "".join(parts)

    def _caption(self, left: float, top: float, entry: Cell) -> str:
        """Return the caption at the side where its script begins: in one line, if necessary smaller, or in two."""
        text = plain(entry.caption)
        for size in _SIZES:
            if self.faces.width(text, entry.language, REGULAR, size) <= self.cell:
                lines = [text]
                break
        else:
            size = _SIZES[-1]
            lines = self.faces.lines(text, entry.language, REGULAR, size, self.cell, _CAPTION_LINES)
        leftwards = right_to_left(entry.language, text)
        x, anchor = (left + self.cell, "end") if leftwards else (left, "start")
        parts = [
            self._text(
                x, top + _BASE + _LEADING * line, shown, entry.language, size, anchor=anchor, leftwards=leftwards
            )
            for line, shown in enumerate(lines)
        ]
        if not self.labelled:
            name = entry.concept if entry.language == "und" else f"{entry.concept} · {entry.language}"
            name = self.faces.lines(name, "en", REGULAR, 8, self.cell, 1)[0]
            y = top + _BASE + _LEADING * len(lines)
            parts.append(self._text(x, y, name, "en", 8, colour=_GREY, anchor=anchor))
        return "".join(parts)

    def _text(
        self, x: float, y: float, text: str, language: str, size: float,
        *, weight: int = REGULAR, colour: str = _INK, anchor: str = "start",
        leftwards: bool | None = None,
    ) -> str:  # fmt: skip
        line = self.faces.shaped(text, language, weight, leftwards)
        x -= line.width * size if anchor == "end" else 0
        drawn = "".join(
            self._box(part)
            if isinstance(part, Box)
            else f'<use xlink:href="#{part.key}" x="{part.x:.4f}" y="{-part.y:.4f}"/>'
            for part in line.parts
        )
        return f'<g transform="translate({x:g} {y:g}) scale({size:g})" fill="{colour}">{drawn}</g>'

    def _box(self, box: Box) -> str:
        """Return a code point in two lines in a box, where no font has the symbol."""
        half = (len(box.code) + 1) // 2
        frame = (
            f'<rect x="{box.x + 0.06:.4f}" y="-0.84" width="0.86" height="1" rx="0.12" fill="none" stroke="{_GREY}" '
            'stroke-width="0.06"/>'
        )
        lines = zip((-0.40, 0.06), (box.code[:half], box.code[half:]), strict=True)
        texts = []
        for y, digits in lines:
            width = self.faces.width(digits, "en", REGULAR, 0.44)
            texts.append(self._text(box.x + 0.49 - width / 2, y, digits, "en", 0.44))
        return frame + "".join(texts)


def _labels(language: str) -> list[tuple[str, str]]:
    """Return the lines of a row's label, each with its language: the native and the English name, or the tag."""
    if language == "und":
        return [("no language", "en")]
    code = language.split("-")[0]
    known = BY_CODE.get(code)
    if known is None:
        return [(language, "en")]
    name = known.name if language == code else f"{known.name}, {language}"
    return [(known.native, code)] + ([(name, "en")] if name != known.native else [])


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


def _data_uri(entry: Cell, side: int, radius: int) -> str:
    """Return the image as PNG in exactly the shown size, with round corners, so that the renderer need not scale it."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(entry.image)) as opened:
        shown = opened.convert("RGB")
        scale = side / max(shown.size)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        page = Image.new("RGB", (side, side), "white")
        page.paste(shown.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
        page.putalpha(_rounded(side, radius))
        page.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _rounded(side: int, radius: int) -> Any:
    """Return the mask of a square with round corners, smoothed by drawing it 4 times as large."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 4 * radius, fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)
