"""`altdiffusion generate PROMPT... --model REF`: images, a sheet and their lineage in one line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from altdiffusion.cli.arguments import Verbs, own_lake_argument
from altdiffusion.cli.drawing_arguments import drawing_arguments, drawing_settings
from altdiffusion.cli.fonts import fonts_for
from altdiffusion.cli.model_argument import model_argument, model_settings
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.by_hand import draw_texts, ids_of
from altdiffusion.generation.settings import ImageFormat

if TYPE_CHECKING:
    from altdiffusion.storage.dataset import Lake, Version


def register(verbs: Verbs) -> None:
    """Add `generate`."""
    text = "draw prompts: images, a contact sheet and their lineage (python -m jobs.generate draws millions)"
    parser = verbs.add_parser("generate", help=text, description=text)
    parser.add_argument("prompts", metavar="PROMPT", nargs="+", help="text in any language; - reads one per line")
    model_argument(parser)
    parser.add_argument("--out", metavar="FOLDER", default="images", help="folder of the images (default %(default)s)")
    parser.add_argument("--size", metavar="WxH", help="pixels, e.g. 768x512 or 512 (default: the model's own size)")
    parser.add_argument("--count", metavar="N", type=int, default=1, help="images per prompt (default %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, help="of a prompt's first image (default: from the prompt)")
    drawing_arguments(parser)
    parser.add_argument("--image-format", choices=get_args(ImageFormat), default="png", help="default %(default)s")
    parser.add_argument("--fonts", metavar="FOLDER", help="fonts for the sheet (default: this machine's)")
    parser.add_argument("--no-sheet", action="store_true", help="draw no contact sheet")
    own_lake_argument(parser)
    parser.set_defaults(run=generate)


def generate(arguments: argparse.Namespace) -> int:
    """Draw the prompts, write images and sheet, and print where they are and where they come from.

    Raises:
        AltDiffusionError: the model, a prompt or an option is not usable; nothing is drawn then.
    """
    from altdiffusion.storage.dataset import Lake

    texts = _prompts(arguments.prompts)
    size = None if arguments.size is None else _size(arguments.size)
    lake = Lake(arguments.lake)
    fonts = None if arguments.no_sheet else _fonts(arguments.fonts, texts)
    generations = draw_texts(
        lake,
        texts,
        _settings(arguments),
        size=size,
        seed=arguments.seed,
        caller="altdiffusion generate",
        announce=lambda line: print(line, flush=True),
        warn=lambda line: print(f"warning: {line}", file=sys.stderr, flush=True),
    )
    written = _write_images(generations, Path(arguments.out))
    for path in written:
        print(path)
    if fonts is not None:
        from altdiffusion.generation.sheet import write_sheet

        sheet = Path(arguments.out) / f"sheet-{generations.ref.digest[:8]}.png"
        write_sheet(generations, sheet, fonts)
        print(sheet)
    _print_lineage(generations, lake, written)
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the job's settings for this command line."""
    return {
        "model": model_settings(arguments.model, arguments.lake, arguments.base_configs),
        "count": arguments.count,
        "image_format": arguments.image_format,
        **drawing_settings(arguments),
    }


def _prompts(given: Sequence[str]) -> list[str]:
    """Return the prompts; `-` means the lines of standard input.

    Raises:
        AltDiffusionError: one of them is blank, or there is none.
    """
    texts = [text for one in given for text in ([line.strip() for line in sys.stdin] if one == "-" else [one])]
    texts = [text for text in texts if text] if "-" in given else texts
    if not texts or not all(text.strip() for text in texts):
        raise AltDiffusionError("a prompt", "is blank", "give a text, in quotation marks")
    return texts


def _size(text: str) -> tuple[int, int]:
    """Return width and height in pixels for what a person typed.

    Raises:
        AltDiffusionError: it is not a size.
    """
    found = re.fullmatch(r"(\d{1,5})(?:[x×*](\d{1,5}))?", text.strip().lower())
    if found is None:
        raise AltDiffusionError(f"--size {text}", "is not a width and a height", "give e.g. 768x512, or 512")
    return int(found[1]), int(found[2] or found[1])


def _fonts(folder: str | None, texts: Sequence[str]) -> str | None:
    """Return the folder of fonts for the sheet, once it is known that it can draw the prompts.

    Returns:
        None, after a warning, where no folder was asked for and this machine cannot draw a sheet.

    Raises:
        AltDiffusionError: the folder that was asked for cannot be used.
    """
    try:
        return fonts_for(folder, [(name, None, text) for name, text in zip(ids_of(texts), texts, strict=True)])
    except AltDiffusionError as error:
        if folder is not None:
            raise
        print(f"warning: no sheet is drawn: {error}", file=sys.stderr)
        return None


def _write_images(generations: Version, folder: Path) -> list[Path]:
    """Write each image as <id>-<seed>.<format>, and return the paths; a file with other content is never replaced."""
    from altdiffusion.image_files.names import file_stem
    from altdiffusion.storage import files

    written = []
    for table in generations.iter_tables(("id", "seed", "image", "image_sha256", "image_format")):
        for row in table.to_pylist():
            stem, ending = file_stem(row), row["image_format"] or "png"
            path = folder / f"{stem}.{ending}"
            if path.exists() and path.read_bytes() != row["image"]:
                path = folder / f"{stem}-{row['image_sha256'][:8]}.{ending}"
            files.write_atomic(str(path), row["image"])
            written.append(path)
    return written


def _print_lineage(generations: Version, lake: Lake, written: Sequence[Path]) -> None:
    """Print where the first image comes from, and how to ask that of any other one."""
    from altdiffusion.lineage import graph as graphs
    from altdiffusion.lineage import image_search, tree

    part = image_search.lineage(graphs.scan(lake.uri), str(written[0]), "up")
    print(f"\n{tree.render(part)}", end="")
    print(f"\nrecorded as {generations.ref.short}; of any image: altdiffusion lineage up FILE --lake {lake.uri}")
