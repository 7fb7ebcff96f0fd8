"""`altdiffusion generate PROMPT... --model REF`: images, a sheet and their lineage in one line.

It is the job of generation with its units run in this process. The images become datasets of a lake, so that the same
line again draws nothing, and every image leads back to its data.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from altdiffusion.cli.arguments import Verbs, own_lake_argument
from altdiffusion.cli.drawing_arguments import drawing_arguments, drawing_settings
from altdiffusion.cli.fonts import fonts_for
from altdiffusion.cli.model_argument import model_argument, model_settings
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import GenerateConfig, ImageFormat

if TYPE_CHECKING:
    from altdiffusion.storage.dataset import Lake, Version

DATASET = "drawn"
PROMPTS = "drawn-prompts"
MOST_BATCH_ROWS = 8
MOST_SIDE = 2048
"""The job's default; larger images are for the job, which states their memory."""
_SLUG_LENGTH = 40


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
    from altdiffusion.diffusion.models import check_device
    from altdiffusion.generation.model import check_sampling, native_side, resolve_model, size_multiple
    from altdiffusion.storage.dataset import Lake

    texts = _prompts(arguments.prompts)
    size = None if arguments.size is None else _size(arguments.size)
    lake = Lake(arguments.lake)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(arguments, Path(folder) / "command-line.jsonl", len(texts))
        check_device(config.device)
        model = resolve_model(config.model, lake.uri)
        check_sampling(model, config.sampler, config.steps)
        width, height = size or (native_side(model), native_side(model))
        _check_size(width, height, size_multiple(model))
        fonts = None if arguments.no_sheet else _fonts(arguments.fonts, texts)
        print(f"draws with {model.ref.short}", flush=True)
        _write_prompts(Path(config.prompts.file), texts, width, height)
        generations = _draw(lake, config)
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


def _config(arguments: argparse.Namespace, file: Path, prompts: int) -> GenerateConfig:
    """Return what the job's config would be for this command line."""
    from altdiffusion.config import from_dict

    images = prompts * max(arguments.count, 1)
    settings = {
        "model": model_settings(arguments.model, arguments.lake),
        "prompts": {"file": str(file), "default_seed": arguments.seed, "strict": True},
        "count": arguments.count,
        "batch_rows": min(1 << (images - 1).bit_length(), MOST_BATCH_ROWS),
        "image_format": arguments.image_format,
        "image_files": False,
        **drawing_settings(arguments),
    }
    return from_dict(GenerateConfig, settings, "altdiffusion generate")


def _write_prompts(file: Path, texts: Sequence[str], width: int, height: int) -> None:
    """Write the prompts file as the job reads it."""
    rows = [
        {"id": name, "prompt": text, "width": width, "height": height}
        for name, text in zip(_ids(texts), texts, strict=True)
    ]
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def _draw(lake: Lake, config: GenerateConfig) -> Version:
    """Return the version that holds the images."""
    from altdiffusion.execution.pipeline_step import run_pipeline_step
    from altdiffusion.execution.progress import Progress
    from altdiffusion.generation.cautions import warnings_of
    from altdiffusion.generation.steps import generation_steps

    prompts, images = generation_steps(lake.uri, PROMPTS, DATASET, config)
    run_pipeline_step(lake, prompts, backend="inline", progress=Progress("prompts", stream=io.StringIO()))
    (version,) = run_pipeline_step(lake, images, backend="inline")
    for line in warnings_of(version):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    return version


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


def _check_size(width: int, height: int, multiple: int) -> None:
    """Refuse a size that the model cannot draw.

    Raises:
        AltDiffusionError: a side is not a multiple, or too large.
    """
    for side in (width, height):
        if not multiple <= side <= MOST_SIDE or side % multiple:
            near = min(max(round(side / multiple), 1) * multiple, MOST_SIDE // multiple * multiple)
            raise AltDiffusionError(
                f"--size {width}x{height}",
                f"has a side of {side} pixels; this model draws multiples of {multiple} up to {MOST_SIDE}",
                f"give e.g. {near}",
            )


def _ids(texts: Sequence[str]) -> list[str]:
    """Return an id per prompt: its number and its ASCII words."""
    digits = max(2, len(str(len(texts))))
    ids = []
    for number, text in enumerate(texts, 1):
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower())[:_SLUG_LENGTH].strip("-")
        ids.append(f"{number:0{digits}d}-{slug}" if slug else f"{number:0{digits}d}")
    return ids


def _fonts(folder: str | None, texts: Sequence[str]) -> str | None:
    """Return the folder of fonts for the sheet, once it is known that it can draw the prompts.

    Returns:
        None, after a warning, where no folder was asked for and this machine cannot draw a sheet.

    Raises:
        AltDiffusionError: the folder that was asked for cannot be used.
    """
    try:
        return fonts_for(folder, [(name, None, text) for name, text in zip(_ids(texts), texts, strict=True)])
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
