"""Text in any script as outlines: the font of each character, its shape among its neighbours, and the text's width.

HarfBuzz shapes each run with its whole font and the context around the run, and the result is drawn as plain
outlines. A renderer's own text layout is never used: it would draw an empty box where a character is missing, Chinese
characters where Japanese ones are meant, and half letters where two fonts meet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.bidi import directional_runs, reads_right_to_left
from altdiffusion.generation.font_files import Font, load_fonts, require_packages, sfnt_of
from altdiffusion.generation.line_breaks import clusters, last_fitting, line_ends
from altdiffusion.languages import BY_CODE

REGULAR, BOLD = 400, 600
_HAN_FAMILY = {"zh": " SC", "ja": " JP", "ko": " KR", "yue": " HK"}
"""Part of the name of a font family that draws Han characters as this language writes them (as in Noto's names)."""
_TRADITIONAL = {"Hant": " TC", "TW": " TC", "HK": " HK", "MO": " HK"}
_RIGHT_TO_LEFT = frozenset(
    ["ar", "arc", "arz", "ckb", "dv", "fa", "he", "iw", "ks", "lrc",
     "mzn", "nqo", "pnb", "ps", "sd", "syr", "ug", "ur", "yi", "ji"]
)  # fmt: skip
_RIGHT_TO_LEFT_SCRIPTS = frozenset(["Adlm", "Arab", "Aran", "Hebr", "Mand", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"])
_LETTERS = ("L", "Mn", "Mc", "N")
_LONE_JAMO = re.compile(r"(?<![\u1100-\u11ff])[\u1100-\u1112\u1161-\u1175\u11a8-\u11c2](?![\u1100-\u11ff])")
_BOX = 1.0
"""Width of the box drawn for a symbol without a font, in parts of the font size."""
_NAMED = 5


@dataclass(frozen=True)
class Glyph:
    """One outline of a shaped text, at a place in parts of the font size (y upwards)."""

    key: str
    x: float
    y: float


@dataclass(frozen=True)
class Box:
    """A visible stand-in for a symbol that no font has: its code point in a box."""

    code: str
    x: float


@dataclass(frozen=True)
class Shaped:
    """A line as it is drawn from left to right; its width is in parts of the font size."""

    parts: tuple[Glyph | Box, ...]
    width: float


@dataclass(frozen=True)
class _Item:
    """Characters of one direction, script and font; without a font, one character that no font has."""

    start: int
    stop: int
    script: str
    font: int | None


class _Face:
    """One font at one weight, open in HarfBuzz."""

    def __init__(self, font: Font, sfnt: bytes, weight: int) -> None:
        import uharfbuzz as hb

        face = hb.Face(sfnt, font.number)
        self._hb, self.scale = hb, 1 / face.upem
        self._font = hb.Font(face)
        if font.variable:
            self._font.set_variations({"wght": float(weight)})
        self._outlines: dict[int, str] = {}

    def shape(self, text: str, item: _Item, language: str, right_to_left: bool) -> list[tuple[Any, Any]]:
        """Return HarfBuzz's glyphs and their positions from left to right, in font units."""
        buffer = self._hb.Buffer()
        buffer.add_codepoints([ord(character) for character in text], item.start, item.stop - item.start)
        buffer.direction = "rtl" if right_to_left else "ltr"
        buffer.script = item.script
        if language not in ("", "und"):
            buffer.language = language
        self._hb.shape(self._font, buffer)
        return list(zip(buffer.glyph_infos, buffer.glyph_positions, strict=True))

    def outline(self, glyph: int) -> str:
        """Return a glyph as SVG path data in font units, empty for a blank one."""
        if glyph not in self._outlines:
            from fontTools.pens.svgPathPen import SVGPathPen

            pen = SVGPathPen(None)
            self._font.draw_glyph_with_pen(glyph, pen)
            self._outlines[glyph] = pen.getCommands()
        return self._outlines[glyph]


class Typefaces:
    """The fonts of a folder.

    Raises:
        AltDiffusionError: a package that draws text is missing, or the folder holds no usable fonts.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        require_packages()
        self._fonts = load_fonts(self._folder)
        self._files: dict[int, bytes] = {}
        self._faces: dict[tuple[int, int], _Face] = {}
        self._orders: dict[tuple[str | None, int], Sequence[int]] = {}
        self._choices: dict[tuple[str, str | None, int], int | None] = {}
        self._found: dict[tuple[int, str, int], bool] = {}
        self._shaped: dict[tuple[str, str, int, bool], Shaped] = {}
        self._used: dict[str, str] = {}
        self.stand_ins: dict[str, None] = {}
        """Symbols drawn as boxes so far, in order of appearance."""
        self.ellipsis = "…" if self._choose("…", "en", REGULAR) is not None else "..."

    def require(self, texts: Iterable[tuple[str, str]]) -> list[str]:
        """Check that the texts, each with its language, can be drawn, and return the symbols that no font has.

        Raises:
            AltDiffusionError: letters, marks or digits of the texts are in no font; it names the first of them.
        """
        symbols: dict[str, None] = {}
        letters: dict[str, tuple[str, str]] = {}
        for given, language in texts:
            text = plain(given)
            ends = clusters(text)
            for cluster in dict.fromkeys(text[start:stop] for start, stop in zip([0, *ends], ends, strict=False)):
                if self._choose(cluster, language, REGULAR) is None:
                    for character in (c for c in cluster if self._choose(c, language, REGULAR) is None):
                        if _is_letter(character):
                            letters.setdefault(character, (given, language))
                        else:
                            symbols.setdefault(character)
        if letters:
            texts, languages = zip(*letters.values(), strict=True)
            raise self._no_font(list(letters), texts[0], languages)
        return list(symbols)

    def width(self, text: str, language: str, weight: int, size: float) -> float:
        """Return the width of a line, in the unit of `size`."""
        return size * self.shaped(text, language, weight).width

    def lines(self, text: str, language: str, weight: int, size: float, width: float, most: int) -> list[str]:
        """Return the text in at most `most` lines no wider than `width`; the rest is replaced by an ellipsis."""

        def fits(line: str) -> bool:
            return self.width(line, language, weight, size) <= width

        def fits_with_ellipsis(line: str) -> bool:
            return fits(line + self.ellipsis)

        left = plain(text)
        lines: list[str] = []
        while left:
            if fits(left):
                return [*lines, left]
            characters = clusters(left)
            if len(lines) == most - 1:
                end = last_fitting(left, characters, fits_with_ellipsis) or characters[0]
                return [*lines, left[:end].rstrip() + self.ellipsis]
            end = last_fitting(left, line_ends(left), fits) or last_fitting(left, characters, fits) or characters[0]
            lines.append(left[:end].rstrip())
            left = left[end:].lstrip()
        return lines

    def shaped(self, text: str, language: str, weight: int, leftwards: bool | None = None) -> Shaped:
        """Return one line as outlines.

        Args:
            leftwards: whether its paragraph runs from right to left; by default as `right_to_left` finds.

        Raises:
            AltDiffusionError: a letter, mark or digit is in no font.
        """
        leftwards = right_to_left(language, text) if leftwards is None else leftwards
        key = (text, language, weight, leftwards)
        if key not in self._shaped:
            self._shaped[key] = self._shape(composed(text), language, weight, leftwards)
        return self._shaped[key]

    def definitions(self) -> str:
        """Return the outlines of all glyphs shaped so far as SVG definitions, by their keys."""
        return "".join(self._used.values())

    def _shape(self, text: str, language: str, weight: int, leftwards: bool) -> Shaped:
        parts: list[Glyph | Box] = []
        at = 0.0
        for run in directional_runs(text, leftwards):
            items = list(self._items(text, run.start, run.stop, language, weight))
            for item in reversed(items) if run.right_to_left else items:
                if item.font is None:
                    parts.append(self._stand_in(text, item, language, at))
                    at += _BOX
                    continue
                face = self._face(item.font, weight)
                for info, position in face.shape(text, item, language, run.right_to_left):
                    outline = face.outline(info.codepoint)
                    if outline:
                        name = f"f{item.font}w{weight}g{info.codepoint}"
                        scale = face.scale
                        self._used.setdefault(
                            name, f'<path id="{name}" d="{outline}" transform="scale({scale:.8g} {-scale:.8g})"/>'
                        )
                        parts.append(Glyph(name, at + position.x_offset * scale, position.y_offset * scale))
                    at += position.x_advance * face.scale
        return Shaped(tuple(parts), at)

    def _stand_in(self, text: str, item: _Item, language: str, at: float) -> Box:
        character = text[item.start]
        if _is_letter(character):
            raise self._no_font([character], text, [language])
        self.stand_ins.setdefault(character)
        return Box(f"{ord(character):04X}", at)

    def _items(self, text: str, start: int, stop: int, language: str, weight: int) -> Iterator[_Item]:
        """Yield the parts of a directional run by script and font, in logical order."""
        current: _Item | None = None
        for first, end in self._pieces(text, start, stop, language, weight):
            piece = text[first:end]
            script = _script(piece) or (current.script if current else _next_script(text, end))
            font = self._choose(piece, language, weight, current.font if current else None)
            if current is not None and font is not None and (current.font, current.script) == (font, script):
                current = _Item(current.start, end, script, font)
                continue
            if current is not None:
                yield current
            current = _Item(first, end, script, font)
        if current is not None:
            yield current

    def _pieces(self, text: str, start: int, stop: int, language: str, weight: int) -> Iterator[tuple[int, int]]:
        """Yield the clusters of a directional run, or the single characters of one that no font has as a whole."""
        first = start
        for end in (start + end for end in clusters(text[start:stop])):
            if end - first == 1 or self._choose(text[first:end], language, weight) is not None:
                yield first, end
            else:
                yield from ((at, at + 1) for at in range(first, end))
            first = end

    def _choose(self, cluster: str, language: str, weight: int, current: int | None = None) -> int | None:
        """Return the font of a cluster: the one before it, if it has the cluster, else the first that has."""
        ending = _han_ending(language)
        if current is not None and self._has(current, cluster, language, weight):
            return current
        key = (cluster, ending, weight)
        if key not in self._choices:
            order = self._order(ending, weight)
            self._choices[key] = next((font for font in order if self._has(font, cluster, language, weight)), None)
        return self._choices[key]

    def _has(self, font: int, cluster: str, language: str, weight: int) -> bool:
        """Return whether a font draws a cluster: shaping it gives no `.notdef`, and ink where ink must be."""
        key = (font, cluster, weight)
        if key not in self._found:
            self._found[key] = self._draws(font, cluster, language, weight)
        return self._found[key]

    def _draws(self, font: int, cluster: str, language: str, weight: int) -> bool:
        points = self._fonts[font].code_points
        decomposed = unicodedata.normalize("NFD", cluster)
        if ord(cluster[0]) not in points and ord(decomposed[0]) not in points and not _is_blank(cluster[0]):
            return False
        face = self._face(font, weight)
        item = _Item(0, len(cluster), _script(cluster) or "Zyyy", font)
        glyphs = [info.codepoint for info, _ in face.shape(cluster, item, language, False)]
        return 0 not in glyphs and (all(map(_is_blank, cluster)) or any(map(face.outline, glyphs)))

    def _no_font(self, characters: Sequence[str], text: str, languages: Sequence[str]) -> AltDiffusionError:
        shown = text if len(text) <= 80 else text[:79] + "…"
        several = len(characters) > 1
        known = (BY_CODE.get(language.split("-")[0]) for language in languages)
        names = [found.name if found else language for found, language in zip(known, languages, strict=True)]
        return AltDiffusionError(
            f"{'each of the characters' if several else 'character'} {named(characters)} of {shown!r}",
            f"is in none of the {len(self._fonts)} fonts in {self._folder}",
            f"add a font for {', '.join(dict.fromkeys(names))}",
        )

    def _face(self, font: int, weight: int) -> _Face:
        weight = weight if self._fonts[font].variable else REGULAR
        if (font, weight) not in self._faces:
            if font not in self._files:
                self._files[font] = sfnt_of(self._fonts[font].path)
            self._faces[font, weight] = _Face(self._fonts[font], self._files[font], weight)
        return self._faces[font, weight]

    def _order(self, ending: str | None, weight: int) -> Sequence[int]:
        """Return the fonts in order of preference: the shortest (plain) family name, then the language's own Han."""
        if (ending, weight) not in self._orders:

            def rank(index: int) -> tuple[Any, ...]:
                font = self._fonts[index]
                own = ending is not None and f"{ending} " in f"{font.family} "  # a name may go on: "Noto Sans SC Thin"
                off = 0 if font.variable else abs(font.weight - weight)
                return (not own, not font.plain, len(font.family), font.family, off, font.path.name)

            shortest = min(len(font.family) for font in self._fonts)
            ranked = sorted(range(len(self._fonts)), key=rank)
            ranked = sorted(ranked, key=lambda index: len(self._fonts[index].family) > shortest)
            self._orders[ending, weight] = ranked
        return self._orders[ending, weight]


def plain(text: str) -> str:
    """Return a text as one line: composed (NFC), its runs of white space and control characters as single spaces."""
    kept = "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
    return " ".join(composed(kept).split())


def composed(text: str) -> str:
    """Return a text in NFC, its lone parts of Korean syllables as the letters that fonts have for them."""

    def letter(found: re.Match[str]) -> str:
        name = unicodedata.name(found[0]).split(" ", 2)[2]  # HANGUL CHOSEONG KIYEOK
        return unicodedata.lookup(f"HANGUL LETTER {name}")

    return _LONE_JAMO.sub(letter, unicodedata.normalize("NFC", text))


def right_to_left(language: str, text: str) -> bool:
    """Return the direction of a text's paragraph: that of its language, or for `und` of its first strong character."""
    first, *rest = language.replace("_", "-").split("-")
    scripts = [part.title() for part in rest if len(part) == 4]
    if scripts:
        return scripts[0] in _RIGHT_TO_LEFT_SCRIPTS
    if first.lower() in ("", "und", "mul", "zxx"):
        return reads_right_to_left(text)
    return first.lower() in _RIGHT_TO_LEFT


def named(characters: Sequence[str], *, shown: bool = True) -> str:
    """Return the first characters by their code points and names for a message, which may show them, too."""
    names = [(f"U+{ord(c):04X}", unicodedata.name(c, "unnamed")) for c in characters[:_NAMED]]
    if shown:
        texts = [f"{c!r} ({code}, {name})" for c, (code, name) in zip(characters, names, strict=False)]
    else:
        texts = [f"{code} {name}" for code, name in names]
    more = len(characters) - len(names)
    return ", ".join(texts) + (f" and {more} more" if more else "")


def _han_ending(language: str) -> str | None:
    first, *rest = language.replace("_", "-").split("-")
    if first.lower() == "zh":
        return next((_TRADITIONAL[part] for part in rest if part in _TRADITIONAL), _HAN_FAMILY["zh"])
    return _HAN_FAMILY.get(first.lower())


def _script(cluster: str) -> str | None:
    """Return the script (ISO 15924) of a cluster's first character that has one."""
    from fontTools import unicodedata as scripts

    found = (scripts.script(character) for character in cluster)
    return next((script for script in found if script not in ("Zyyy", "Zinh", "Zzzz")), None)


def _next_script(text: str, start: int) -> str:
    return next(filter(None, map(_script, text[start:])), "Zyyy")


def _is_blank(character: str) -> bool:
    return unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cf", "Cc") or "\ufe00" <= character <= "\ufe0f"


def _is_letter(character: str) -> bool:
    return unicodedata.category(character).startswith(_LETTERS)
