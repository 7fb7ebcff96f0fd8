"""The contact sheet: one row per language, one column per concept, and every image with its prompt."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.typeface import Typefaces
from altdiffusion.languages import LANGUAGES
from altdiffusion.storage.dataset import Version

ZOOM = 2.0
MOST_COLUMNS = 16
_REGULAR, _BOLD = 400, 600
_INK, _GREY, _LINE, _PAPER = "#1c2024", "#60646c", "#e4e5e9", "#ffffff"
_LABEL_WIDTH, _GAP, _MARGIN, _CAPTION = 132, 12, 28, 31
_SIZES = (11.0, 10.0, 9.0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of the sheet."""

    concept: str
    """The column."""
    language: str
    """The row."""
    caption: str
    image: bytes
    """Encoded image."""


def write_sheet(
    version: Version, file: str | Path, fonts_dir: str | Path, *, cell: int = 96, title: str = "", zoom: float = ZOOM
) -> None:
    """Draw the sheet of a generations version, whose prompt ids are <concept>-<language>, as a PNG file.

    Raises:
        AltDiffusionError: an id has another form, or no font has a character.
    """
    table = version.read(["id", "language", "prompt", "image", "checkpoint", "steps", "guidance_scale", "sampler"])
    cells = []
    for row in table.to_pylist():
        concept, dash, language = row["id"].rpartition("-")
        if not dash or language != row["language"]:
            raise AltDiffusionError(
                f"prompt id {row['id']} of {version.ref.short}",
                f"is not of the form <concept>-{row['language']}",
                "name the prompts so, or do not draw a sheet",
            )
        cells.append(Cell(concept=concept, language=language, caption=row["prompt"], image=row["image"]))
    first = table.slice(0, 1).to_pylist()[0]
    checkpoint, _, digest = str(first["checkpoint"]).partition("@")
    settings = f"{first['sampler']}, {first['steps']} steps, guidance {first['guidance_scale']:g}"
    subtitle = f"{checkpoint.partition(':')[2]} @ {digest[:12]}   ·   {settings}   ·   the same noise in every row"
    data = contact_sheet(cells, fonts_dir, cell=cell, title=title, subtitle=subtitle, zoom=zoom)
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def contact_sheet(
    cells: Sequence[Cell],
    fonts_dir: str | Path,
    *,
    cell: int = 96,
    title: str = "",
    subtitle: str = "",
    zoom: float = ZOOM,
) -> bytes:
    """Return the sheet as PNG bytes.

    Args:
        cells: images in any order. Columns are in order of first appearance, at most `MOST_COLUMNS`; rows are in the
            project's order of languages. The place of a missing image stays empty.
        fonts_dir: folder of fonts that together cover all texts.
        cell: side of an image on the sheet.
        zoom: pixels of the PNG per unit of the sheet.
    """
    import resvg_py

    if not cells:
        raise AltDiffusionError("the contact sheet", "has no images", "generate some first")
    with tempfile.TemporaryDirectory() as scratch:
        page = _Page(Typefaces(fonts_dir, scratch), cells, cell, title, subtitle, zoom)
        svg = page.svg()
        png: bytes = resvg_py.svg_to_bytes(
            svg_string=svg, font_files=page.faces.files, skip_system_fonts=True, zoom=zoom
        )
    return bytes(png)


class _Page:
    """The layout of the sheet, in units of the SVG."""

    def __init__(
        self, faces: Typefaces, cells: Sequence[Cell], cell: int, title: str, subtitle: str, zoom: float
    ) -> None:
        self.faces = faces
        self._pixels = round(cell * zoom)
        self._cell = cell
        self._title = title or "One model, the same things, in every language"
        self._subtitle = subtitle
        self._concepts = list(dict.fromkeys(entry.concept for entry in cells))[:MOST_COLUMNS]
        present = {entry.language for entry in cells}
        self._languages = [language for language in LANGUAGES if language.code in present]
        self._by_place = {(entry.concept, entry.language): entry for entry in cells}
        self._top = _MARGIN + 58 + 34
        self._left = _MARGIN + _LABEL_WIDTH + 16
        self._announce()

    def svg(self) -> str:
        width = self._left + len(self._concepts) * (self._cell + _GAP) - _GAP + _MARGIN
        height = self._top + len(self._languages) * (self._cell + _CAPTION) + _MARGIN - 8
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}"><rect width="100%" height="100%" fill="{_PAPER}"/>',
            f'<clipPath id="round"><rect width="{self._cell}" height="{self._cell}" rx="8"/></clipPath>',
            self._text(_MARGIN, _MARGIN + 20, self._title, "en", 22, weight=_BOLD),
            self._text(_MARGIN, _MARGIN + 42, self._subtitle, "en", 11.5, colour=_GREY),
        ]
        for column, concept in enumerate(self._concepts):
            parts.append(self._heading(column, self._name(concept)))
        for row, language in enumerate(self._languages):
            parts.append(self._row(row, language))
        return "".join([*parts, "</svg>"])

    def _row(self, row: int, language: Any) -> str:
        top = self._top + row * (self._cell + _CAPTION)
        middle, right = top + self._cell / 2, self._left - 16
        parts = [
            self._text(right, middle - 1, language.native, language.code, 17, weight=_BOLD, anchor="end"),
            self._text(right, middle + 17, language.name, "en", 11.5, colour=_GREY, anchor="end")
            if language.name != language.native
            else "",
        ]
        for column, concept in enumerate(self._concepts):
            left = self._left + column * (self._cell + _GAP)
            side = self._cell - 1
            frame = f'<rect x="{left + 0.5}" y="{top + 0.5}" width="{side}" height="{side}" rx="8" '
            entry = self._by_place.get((concept, language.code))
            if entry is None:
                parts.append(f'{frame}fill="none" stroke="{_LINE}" stroke-dasharray="4 4"/>')
                continue
            parts.append(
                f'<g transform="translate({left} {top})" clip-path="url(#round)"><image width="{self._cell}" '
                f'height="{self._cell}" xlink:href="{_data_uri(entry.image, self._pixels)}"/></g>'
                f'{frame}fill="none" stroke="{_LINE}"/>'
            )
            parts.append(self._caption(left + self._cell / 2, top + self._cell + 12, entry))
        return "".join(parts)

    def _heading(self, column: int, name: str) -> str:
        centre = self._left + column * (self._cell + _GAP) + self._cell / 2
        lines = self.faces.lines(name, "en", _BOLD, 12, self._cell + _GAP - 4, 2)
        base = self._top - 10 - 14 * (len(lines) - 1)
        return "".join(
            self._text(centre, base + 14 * number, line, "en", 12, weight=_BOLD, anchor="middle")
            for number, line in enumerate(lines)
        )

    def _caption(self, centre: float, base: float, entry: Cell) -> str:
        """Return the caption in one line, if necessary in a smaller size, else in two lines."""
        room = self._cell + _GAP - 5
        for size in _SIZES:
            if self.faces.width(entry.caption, entry.language, _REGULAR, size) <= room:
                lines = [entry.caption]
                break
        else:
            size = _SIZES[-1]
            lines = self.faces.lines(entry.caption, entry.language, _REGULAR, size, room, 2)
        return "".join(
            self._text(centre, base + 11 * number, line, entry.language, size, colour=_GREY, anchor="middle")
            for number, line in enumerate(lines)
        )

    def _name(self, concept: str) -> str:
        english = self._by_place.get((concept, "en"))
        return english.caption if english is not None else concept

    def _announce(self) -> None:
        want = self.faces.want
        want(self._title, "en", _BOLD)
        want(self._subtitle, "en", _REGULAR)
        for concept in self._concepts:
            want(self._name(concept), "en", _BOLD)
        for language in self._languages:
            want(language.native, language.code, _BOLD)
            want(language.name, "en", _REGULAR)
            for concept in self._concepts:
                entry = self._by_place.get((concept, language.code))
                if entry is not None:
                    want(entry.caption, language.code, _REGULAR)
        self.faces.prepare()

    def _text(
        self, x: float, y: float, text: str, language: str, size: float,
        *, weight: int = _REGULAR, colour: str = _INK, anchor: str = "start",
    ) -> str:  # fmt: skip
        return (
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}" '
            f'xml:lang="{language}">'
            f"{self.faces.markup(text, language, weight)}</text>"
        )


def _data_uri(image: bytes, side: int) -> str:
    """Return the image as PNG in exactly the shown size, so that the renderer need not scale it."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        shown = opened.convert("RGB")
        scale = side / max(shown.size)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        page = Image.new("RGB", (side, side), "white")
        page.paste(shown.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
        page.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
