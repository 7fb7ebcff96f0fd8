"""Font files: which fonts a folder holds, and what each of them covers.

A folder may hold whole fonts or slices of them (a Chinese web font consists of a hundred files), static or variable.
"""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".woff", ".woff2")
_COLLECTIONS = (".ttc", ".otc")


@dataclass(frozen=True, kw_only=True)
class Font:
    """A font in a file."""

    path: Path
    number: int
    """Its place in a collection."""
    family: str
    code_points: frozenset[int]
    weight: int
    variable: bool
    plain: bool
    """Upright and of normal width."""


def load_fonts(folder: Path) -> list[Font]:
    """Return the fonts in a folder and the folders in it.

    Raises:
        AltDiffusionError: there is none, or a file is damaged.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    fonts = [font for path in paths for font in _fonts_of(path)]
    if not fonts:
        raise AltDiffusionError(
            f"fonts folder {folder}",
            "holds no fonts with outlines" if paths else "holds no fonts" if folder.is_dir() else "does not exist",
            f"put files ending in {', '.join(_SUFFIXES)} there",
        )
    return fonts


def _fonts_of(path: Path) -> list[Font]:
    """Return the fonts of a file that have outlines: fonts of coloured bitmaps only are left out."""
    from fontTools.ttLib import TTCollection, TTFont, TTLibError

    try:
        if path.suffix.lower() in _COLLECTIONS:
            with TTCollection(path, lazy=True) as collection:
                opened = [_font_of(path, number, font) for number, font in enumerate(collection.fonts)]
        else:
            with TTFont(path, lazy=True) as font:
                opened = [_font_of(path, 0, font)]
    except (TTLibError, OSError, KeyError, ImportError) as error:
        remedy = "install brotli" if isinstance(error, ImportError) else "replace it"
        raise AltDiffusionError(f"font {path}", f"cannot be read ({error})", remedy) from error
    return [font for font in opened if font is not None]


def _font_of(path: Path, number: int, font: Any) -> Font | None:
    if not {"glyf", "CFF ", "CFF2"} & set(font.keys()):
        return None
    names, style = font["name"], font["OS/2"]
    return Font(
        path=path,
        number=number,
        family=str(names.getDebugName(16) or names.getDebugName(1) or path.stem),
        code_points=frozenset(font.getBestCmap() or ()),
        weight=int(style.usWeightClass),
        variable="fvar" in font and any(axis.axisTag == "wght" for axis in font["fvar"].axes),
        plain=not style.fsSelection & 1 and style.usWidthClass == 5,
    )


def sfnt_of(path: Path) -> bytes:
    """Return a font file's tables as HarfBuzz reads them, which knows nothing of the web's compression."""
    from fontTools.ttLib import TTFont

    if path.suffix.lower() not in (".woff", ".woff2"):
        return path.read_bytes()
    with TTFont(path, lazy=True) as font:
        font.flavor = None
        data = io.BytesIO()
        font.save(data, reorderTables=False)
    return data.getvalue()


def require_packages() -> None:
    """Import what shapes and draws text.

    Raises:
        AltDiffusionError: a package is missing.
    """
    try:
        for package in ("fontTools", "resvg_py", "uharfbuzz"):
            importlib.import_module(package)
    except ImportError as error:
        raise AltDiffusionError(
            "the contact sheet",
            f"needs the package {error.name}, which cannot be imported ({error})",
            "install the extra `sheet` (pip install '.[sheet]'), or leave the sheet out of the config",
        ) from error
