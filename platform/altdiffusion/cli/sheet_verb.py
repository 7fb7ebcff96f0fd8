"""`altdiffusion sheet DATASET`: one image of many: a grid of languages and concepts, or rows with captions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, dataset_argument, lake_argument
from altdiffusion.cli.fonts import fonts_for
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.generation.sheet_arrangement import Selection
    from altdiffusion.storage.dataset import Version


def register(verbs: Verbs) -> None:
    """Add `sheet`."""
    text = "draw the images of a dataset with their prompts as one PNG: rows of languages, or of images in order"
    parser = verbs.add_parser("sheet", help=text, description=text)
    dataset_argument(parser, "a dataset of generations")
    lake_argument(parser)
    parser.add_argument("--out", default="sheet.png", metavar="FILE", help="PNG to write (default %(default)s)")
    parser.add_argument("--languages", metavar="CODE,...", help="only prompts in these languages")
    parser.add_argument("--prompts", metavar="PATTERN,...", help="only prompts with such ids, e.g. 'cat-*,dog-*'")
    parser.add_argument(
        "--columns", type=int, metavar="N", help="images per row, in the dataset's order; default: a grid, if ids allow"
    )
    parser.add_argument("--cell", type=int, default=96, metavar="N", help="side of an image (default %(default)s)")
    parser.add_argument("--title", default="", metavar="TEXT", help="headline of the sheet")
    parser.add_argument("--fonts", metavar="FOLDER", help="fonts for all scripts (default: this machine's)")
    parser.set_defaults(run=draw)


def draw(arguments: argparse.Namespace) -> int:
    """Draw the sheet; print its path and what it leaves out.

    Raises:
        AltDiffusionError: there is no such dataset, no image matches, or the sheet cannot be drawn here.
    """
    from altdiffusion.generation.sheet import write_sheet
    from altdiffusion.storage import files
    from altdiffusion.storage.dataset import Lake

    selection = _selection(arguments)
    files.check_local_output(f"contact sheet {arguments.out}", arguments.out)
    version = Lake(arguments.lake).version(arguments.name)
    rows = _shown(version, selection)
    fonts = fonts_for(arguments.fonts, rows, selection.columns)
    notes = write_sheet(version, arguments.out, fonts, cell=arguments.cell, title=arguments.title, selection=selection)
    print("\n".join([arguments.out, *notes]))
    return 0


def _selection(arguments: argparse.Namespace) -> Selection:
    from altdiffusion.generation.sheet_arrangement import MOST_COLUMNS, Selection

    if arguments.columns is not None and not 1 <= arguments.columns <= MOST_COLUMNS:
        raise AltDiffusionError(f"--columns {arguments.columns}", f"is not from 1 to {MOST_COLUMNS}", "give e.g. 10")
    if not 16 <= arguments.cell <= 1024:
        raise AltDiffusionError(f"--cell {arguments.cell}", "is not from 16 to 1024", "give e.g. 96")
    return Selection(
        languages=arguments.languages.split(",") if arguments.languages else (),
        ids=arguments.prompts.split(",") if arguments.prompts else (),
        columns=arguments.columns,
    )


def _shown(version: Version, selection: Selection) -> list[tuple[str, str | None, str]]:
    """Return id, language and text of the prompts that are shown.

    Raises:
        AltDiffusionError: there is none, or the dataset does not hold generations.
    """
    if version.manifest.kind != "generations":
        raise AltDiffusionError(
            version.ref.short, f"holds {version.manifest.kind}, not generations", "name a dataset of drawn images"
        )
    table = version.read(["id", "language", "prompt"])
    rows = list(zip(*(table[name].to_pylist() for name in ("id", "language", "prompt")), strict=True))
    shown = [row for row in rows if selection.has(row[0], row[1] or "und")]
    if not shown:
        there = ", ".join(sorted({row[1] or "und" for row in rows})[:20]) or "none"
        example = rows[0][0] if rows else "none"
        raise AltDiffusionError(
            version.ref.short,
            f"has no image that matches; its languages are {there}, an id is {example}",
            "change --languages or --prompts",
        )
    return shown
