"""The drawing of a contact sheet: an SVG of outlines and images, rendered as a PNG."""

from __future__ import annotations

import base64
import functools
import io
import math
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.generation.typeface import BOLD, REGULAR, Box, Typefaces, plain, right_to_left
from altdiffusion.languages import BY_CODE

MOST_PIXELS = 64_000_000
"""A larger sheet is drawn at a smaller zoom."""
_INK, _GREY, _LINE, _PAPER = "#1c2024", "#60646c", "#e4e5e9", "#ffffff"
_LABEL_WIDTH, _GAP, _MARGIN, _BASE, _LEADING = 132, 14, 28, 14, 12.5
_SIZES = (11.0, 10.0, 9.0)
_BETWEEN, _ROUND, _LEAST_WIDTH = 10, 8, 420
_CAPTION_LINES, _NOTE_LINES = 2, 3


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
class Band:
    """One row of the sheet."""

    language: str
    cells: tuple[Cell | None, ...]


@dataclass(kw_only=True)
class Page:
    """The layout of the sheet, in units of the SVG. Vertical places of texts are those of their baselines."""

    faces: Typefaces
    cell: int
    title: str
    subtitle: str
    headings: list[tuple[str, str]]
    bands: list[Band]
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

    def _band(self, band: Band, left: float, top: float, pixels: int) -> list[str]:
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
        (native, code), *rest = row_labels(language)
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


def row_labels(language: str) -> list[tuple[str, str]]:
    """Return the lines of a row's label, each with its language: the native and the English name, or the tag."""
    if language == "und":
        return [("no language", "en")]
    code = language.split("-")[0]
    known = BY_CODE.get(code)
    if known is None:
        return [(language, "en")]
    name = known.name if language == code else f"{known.name}, {language}"
    return [(known.native, code)] + ([(name, "en")] if name != known.native else [])


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
