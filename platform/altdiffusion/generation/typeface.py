"""Text in any of the 18 languages: the font of each character, and the width of the text.

A folder of fonts may hold whole fonts or slices of them (a Chinese web font consists of a hundred files), static or
variable. Every character is assigned to one file by name. A renderer's own fallback is never used: it would draw an
empty box where a character is missing, and Chinese characters where Japanese ones are meant.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import BY_CODE

ELLIPSIS = "…"
_SUFFIXES = (".ttf", ".otf", ".woff", ".woff2")
_HAN_FAMILY = {"zh": " SC", "ja": " JP", "ko": " KR"}
"""Ending of the name of a font family that draws Han characters as this language writes them (as in Noto's names)."""


@dataclass(frozen=True, kw_only=True)
class _Font:
    path: Path
    family: str
    code_points: frozenset[int]


@dataclass(frozen=True)
class Run:
    """Consecutive characters of a text that one font draws."""

    text: str
    font: int


@dataclass
class _Instance:
    name: str
    path: Path
    advances: dict[int, float] = field(default_factory=dict)
    """Width of each code point, in parts of the font size."""


class Typefaces:
    """The fonts of a folder, and a scratch folder in which the required parts of them are prepared for a renderer.

    First `want` announces texts, then `prepare` writes the files, then `width`, `lines` and `markup` may be called.

    Raises:
        AltDiffusionError: the folder holds no fonts, or an announced character is in none of them.
    """

    def __init__(self, folder: str | Path, scratch: str | Path) -> None:
        self._folder = Path(folder)
        self._scratch = Path(scratch)
        self._fonts = _load(self._folder)
        self._wanted: dict[tuple[int, int], set[str]] = defaultdict(set)
        self._instances: dict[tuple[int, int], _Instance] = {}

    @property
    def files(self) -> list[str]:
        """Font files that the renderer must load."""
        return [str(instance.path) for instance in self._instances.values()]

    def want(self, text: str, language: str, weight: int) -> None:
        """Announce a text; `weight` is used for variable fonts only (400 is regular)."""
        for run in self._runs(f"{text}{ELLIPSIS}", language):
            self._wanted[run.font, weight].update(run.text)

    def prepare(self) -> None:
        """Write one small font file per announced font and weight."""
        for (font, weight), characters in self._wanted.items():
            if (font, weight) not in self._instances:
                self._instances[font, weight] = _instantiate(
                    self._fonts[font].path, characters, weight, f"face{font}w{weight}", self._scratch
                )

    def width(self, text: str, language: str, weight: int, size: float) -> float:
        """Return the width in the unit of `size`, as the sum over single characters; joined ones are narrower."""
        return size * sum(
            self._instances[run.font, weight].advances.get(ord(character), 0.5)
            for run in self._runs(text, language)
            for character in run.text
        )

    def lines(self, text: str, language: str, weight: int, size: float, width: float, most: int) -> list[str]:
        """Return the text in at most `most` lines no wider than `width`; the rest is replaced by an ellipsis."""

        def fits(line: str) -> bool:
            return self.width(line, language, weight, size) <= width

        left = text.strip()
        lines: list[str] = []
        while left and len(lines) < most:
            if fits(left):
                return [*lines, left]
            whole = _longest(left, [i for i, character in enumerate(left) if character == " "], fits)
            end = whole or _longest(left, _breaks(left), fits) or _breaks(left)[0]
            if len(lines) == most - 1:
                ends = _breaks(left)
                end = _longest(left, ends, lambda line: fits(line + ELLIPSIS)) or ends[0]
                return [*lines, left[:end].rstrip() + ELLIPSIS]
            lines.append(left[:end].rstrip())
            left = left[end:].lstrip()
        return lines

    def markup(self, text: str, language: str, weight: int) -> str:
        """Return the text as SVG spans, each with its font."""
        return "".join(
            f'<tspan font-family="{self._instances[run.font, weight].name}">{_escape(run.text)}</tspan>'
            for run in self._runs(text, language)
        )

    def _runs(self, text: str, language: str) -> list[Run]:
        runs: list[Run] = []
        order = self._order(language)
        for character in unicodedata.normalize("NFC", text):
            code = ord(character)
            current = runs[-1].font if runs else None
            if current is not None and (code in self._fonts[current].code_points or _joins(character)):
                runs[-1] = Run(runs[-1].text + character, runs[-1].font)
                continue
            font = next((index for index in order if code in self._fonts[index].code_points), None)
            if font is None:
                raise AltDiffusionError(
                    f"character {character!r} (U+{code:04X}, {unicodedata.name(character, 'unnamed')}) of {text!r}",
                    f"is in none of the {len(self._fonts)} fonts in {self._folder}",
                    f"add a font for {BY_CODE[language].name if language in BY_CODE else language}",
                )
            runs.append(Run(character, font))
        return runs

    def _order(self, language: str) -> Sequence[int]:
        """Return the fonts in order of preference: the shortest (plain) family name, then the language's own Han."""
        ending = _HAN_FAMILY.get(language)

        def rank(index: int) -> tuple[bool, int, str, str]:
            font = self._fonts[index]
            own = ending is not None and font.family.endswith(ending)
            return (not own, len(font.family), font.family, font.path.name)

        plain = min(len(font.family) for font in self._fonts)
        ranked = sorted(range(len(self._fonts)), key=rank)
        return sorted(ranked, key=lambda index: len(self._fonts[index].family) > plain)


def _load(folder: Path) -> list[_Font]:
    from fontTools.ttLib import TTFont, TTLibError

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    fonts = []
    for path in paths:
        try:
            with TTFont(path, lazy=True) as font:
                names = font["name"]
                family = str(names.getDebugName(16) or names.getDebugName(1) or path.stem)
                fonts.append(_Font(path=path, family=family, code_points=frozenset(font.getBestCmap() or ())))
        except (TTLibError, OSError, KeyError, ImportError) as error:
            remedy = "install brotli" if isinstance(error, ImportError) else "replace it"
            raise AltDiffusionError(f"font {path}", f"cannot be read ({error})", remedy) from error
    if not fonts:
        raise AltDiffusionError(
            f"fonts folder {folder}", "holds no fonts", f"put files ending in {', '.join(_SUFFIXES)} there"
        )
    return fonts


def _instantiate(path: Path, characters: set[str], weight: int, name: str, scratch: Path) -> _Instance:
    """Write a static TrueType file of these characters under its own family name, and return it with their widths."""
    from fontTools import subset
    from fontTools.ttLib import TTFont
    from fontTools.varLib import instancer

    font: Any = TTFont(path)
    options = subset.Options(layout_features=["*"], name_IDs=["*"], notdef_outline=True, hinting=False)
    options.drop_tables += ["FFTM"]  # an editor's time stamps
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(characters) + " ")
    subsetter.subset(font)
    if "fvar" in font:
        place = {}
        for axis in font["fvar"].axes:
            value = weight if axis.axisTag == "wght" else axis.defaultValue
            place[axis.axisTag] = min(max(value, axis.minValue), axis.maxValue)
        font = instancer.instantiateVariableFont(font, place)
    names = font["name"]
    names.names = [record for record in names.names if record.nameID not in (16, 17, 21, 22, 25)]
    for name_id, text in ((1, name), (2, "Regular"), (4, name), (6, name)):
        names.setName(text, name_id, 3, 1, 0x409)
    font["OS/2"].usWeightClass = 400  # the renderer selects it by its family alone
    font.flavor = None
    target = scratch / f"{name}.ttf"
    font.save(target)
    scale, cmap, widths = font["head"].unitsPerEm, font.getBestCmap() or {}, font["hmtx"]
    advances = {code: widths[glyph][0] / scale for code, glyph in cmap.items()}
    for code in advances:
        if unicodedata.combining(chr(code)) or unicodedata.category(chr(code)) == "Mn":
            advances[code] = 0.0
    return _Instance(name=name, path=target, advances=advances)


def _joins(character: str) -> bool:
    """Return whether a character belongs to the one before it, in every font: spaces, marks, joiners."""
    return character.isspace() or unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def _breaks(text: str) -> list[int]:
    """Return the places where a line may end: never before a mark, nor after a joiner or a Thai leading vowel."""
    return [
        i
        for i in range(1, len(text) + 1)
        if i == len(text) or not (_joins(text[i]) or text[i - 1] in "\u200d\u200c\u094d\u0e40\u0e41\u0e42\u0e43\u0e44")
    ]


def _longest(text: str, ends: Sequence[int], fits: Any) -> int:
    """Return the last of `ends` up to which the text fits, or 0."""
    return max((end for end in ends if fits(text[:end])), default=0)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
