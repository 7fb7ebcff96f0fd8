"""The folder of fonts that a contact sheet is drawn with: the one that was asked for, or one of this machine's."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from altdiffusion.errors import AltDiffusionError

_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
)


def fonts_for(folder: str | None, prompts: Sequence[tuple[str, str | None, str]], columns: int | None = None) -> str:
    """Return a folder whose fonts can draw a sheet of these prompts.

    Args:
        folder: the one to use; None takes the first of this machine's that can.
        prompts: id, language and text of each.
        columns: images per row of the sheet; None draws a grid where the ids allow it.

    Raises:
        AltDiffusionError: there is none, or a package is missing.
    """
    from altdiffusion.generation.sheet import check_sheet
    from altdiffusion.generation.sheet_arrangement import Selection

    problem = AltDiffusionError("fonts", "are in none of this machine's usual folders", "give --fonts")
    for one in [folder] if folder is not None else _of_this_machine():
        try:
            check_sheet(one, prompts, selection=Selection(columns=columns))
        except AltDiffusionError as error:
            problem = error
        else:
            return one
    raise problem


def _of_this_machine() -> list[str]:
    """Return the folders of this machine's fonts, and that of matplotlib's (no Asian scripts)."""
    folders = [os.path.expanduser(path) for path in _FOLDERS]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(os.path.join(os.path.dirname(matplotlib.origin), "mpl-data", "fonts", "ttf"))
    return [path for path in folders if os.path.isdir(path)]
