"""Fonts for the 18 languages: Noto Sans (SIL Open Font License 1.1), in the slices that npm has, 19 MB in all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from demo.npm import Package, default_cache, fetch

_SLICES = {
    Package(
        name="@fontsource-variable/noto-sans",
        version="5.3.0",
        sha512="e3ZuxzY9AL2psXPZlhwhnYrHUHv6PMoyK9MQ7croF0CUgURLqu9EMjW7q2FgVLwij1tjLsIHQrnwQ8aUcg4BiA==",
    ): ("latin", "latin-ext", "vietnamese", "cyrillic", "cyrillic-ext", "devanagari"),
    Package(
        name="@fontsource-variable/noto-sans-arabic",
        version="5.3.0",
        sha512="Rz8+DBzza3//cmN+DBQajJhx3x+Dx12eUgnQsTOgPWbOT0+In6APmE8z4I/QQnUWfAx+s8l93+60qDT5vJH1sA==",
    ): ("arabic",),
    Package(
        name="@fontsource-variable/noto-sans-thai",
        version="5.3.0",
        sha512="jHEC1vo8gD09GKf8jtH1IMoPqWmQQSKH3gkyD3ibCIMEkVpEqJ9NJ2c181VHKbTHXc7Wu9CbuBU3yjQNvpbEbw==",
    ): ("thai",),
    Package(
        name="@fontsource-variable/noto-sans-sc",
        version="5.3.1",
        sha512="UB96JJ17HyD5ehEU7Em0hDdh7fvTMB4B4Hzmq5c4QaNwwSLqTrdM2S+coySeBqCkXwh0DxqXT0b0wMrmzorFpQ==",
    ): ("*",),
    Package(
        name="@fontsource-variable/noto-sans-jp",
        version="5.3.1",
        sha512="/anGvJFc5y36f8DJ+3TSh2+KAvaRLA9PaLUMvneeY5s4j8m+8X4F3lE/sjTuG9YI5BX4sykvCk4TuJMG7ecMRQ==",
    ): ("*",),
    Package(
        name="@fontsource-variable/noto-sans-kr",
        version="5.3.1",
        sha512="f5aty6Qgk2LVU5TjCtXHxiYHqUWYW8f75ll0Chn8ucCqoOlIomcACUwf1V47yUt6wTdWZiGr3dcbQk+zlOspMA==",
    ): ("*",),
}


def fonts_folder(cache: Path | None = None) -> Path:
    """Return where the fonts are once they are fetched."""
    return (cache or default_cache()) / "fonts"


def fetch_fonts(cache: Path | None = None) -> Path:
    """Make the fonts available, once, and return their folder.

    Raises:
        AltDiffusionError: npm is missing or fails, or a package is not what was pinned.
    """
    folder = fonts_folder(cache)
    if folder.is_dir():  # it appears by rename, whole
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "fonts"
        made.mkdir()
        for package, slices in _SLICES.items():
            source, stem = fetch(package, cache), package.name.rsplit("/", 1)[-1]
            shutil.copy(source / "LICENSE", made / f"{stem}-LICENSE")
            for part in slices:
                for file in sorted((source / "files").glob(f"{stem}-{part}-wght-normal.woff2")):
                    shutil.copy(file, made)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    return folder
