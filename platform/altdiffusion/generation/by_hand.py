"""Drawing of a few prompts that a person gives in one line: the job of generation with its units run in this process.

The images become datasets of a lake, so that the same line again draws nothing, and every image leads back to its data.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import GenerateConfig

if TYPE_CHECKING:
    from altdiffusion.generation.model import Model
    from altdiffusion.storage.dataset import Lake, Version

DATASET = "drawn"
PROMPTS = "drawn-prompts"
MOST_BATCH_ROWS = 8
MOST_SIDE = 2048
"""The job's default; larger images are for the job, which states their memory."""
_SLUG_LENGTH = 40


def draw_texts(
    lake: Lake,
    texts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    size: tuple[int, int] | None,
    seed: int | None,
    caller: str,
    announce: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Version:
    """Return the generations that hold the images of prompts, drawn unless the lake has them.

    Args:
        settings: of the job of generation (`GenerateConfig`), apart from prompts and batches.
        size: width and height in pixels; None for the model's own.
        seed: of a prompt's first image; None for one from the prompt.
        caller: what messages call the setting of the size, and the whole of the settings.
        announce: gets a line on the model before anything is drawn.
        warn: gets the lines on what was cut off or refused.

    Raises:
        AltDiffusionError: the model, a prompt or a setting is not usable; nothing is drawn then.
    """
    from altdiffusion.diffusion.models import check_device
    from altdiffusion.generation.cautions import warnings_of
    from altdiffusion.generation.model import check_sampling, resolve_model

    with tempfile.TemporaryDirectory() as folder:
        config = _config(settings, Path(folder) / "command-line.jsonl", len(texts), seed, caller)
        check_device(config.device)
        model = resolve_model(config.model, lake.uri)
        check_sampling(model, config.sampler, config.steps)
        width, height = _checked_size(size, model, "--size" if caller.startswith("altdiffusion ") else "size")
        announce(f"draws with {model.ref.short}")
        _write_prompts(Path(config.prompts.file), texts, width, height)
        version = _draw(lake, config)
    for line in warnings_of(version):
        warn(line)
    return version


def ids_of(texts: Sequence[str]) -> list[str]:
    """Return an id per prompt: its number and its ASCII words."""
    digits = max(2, len(str(len(texts))))
    ids = []
    for number, text in enumerate(texts, 1):
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower())[:_SLUG_LENGTH].strip("-")
        ids.append(f"{number:0{digits}d}-{slug}" if slug else f"{number:0{digits}d}")
    return ids


def _config(settings: Mapping[str, Any], file: Path, prompts: int, seed: int | None, caller: str) -> GenerateConfig:
    """Return what the job's config would be."""
    from altdiffusion.config import from_dict

    images = prompts * max(settings["count"], 1)
    tree = {
        **settings,
        "prompts": {"file": str(file), "default_seed": seed, "strict": True},
        "batch_rows": min(1 << (images - 1).bit_length(), MOST_BATCH_ROWS),
        "image_files": False,
    }
    return from_dict(GenerateConfig, tree, caller)


def _checked_size(size: tuple[int, int] | None, model: Model, name: str) -> tuple[int, int]:
    """Return width and height of the images.

    Raises:
        AltDiffusionError: a side is not a multiple of what the model draws, or too large.
    """
    from altdiffusion.generation.model import native_side, size_multiple

    width, height = size or (native_side(model), native_side(model))
    multiple = size_multiple(model)
    for side in (width, height):
        if not multiple <= side <= MOST_SIDE or side % multiple:
            near = min(max(round(side / multiple), 1) * multiple, MOST_SIDE // multiple * multiple)
            raise AltDiffusionError(
                f"{name} {width}x{height}",
                f"has a side of {side} pixels; this model draws multiples of {multiple} up to {MOST_SIDE}",
                f"give e.g. {near}",
            )
    return width, height


def _write_prompts(file: Path, texts: Sequence[str], width: int, height: int) -> None:
    """Write the prompts file as the job reads it."""
    rows = [
        {"id": name, "prompt": text, "width": width, "height": height}
        for name, text in zip(ids_of(texts), texts, strict=True)
    ]
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def _draw(lake: Lake, config: GenerateConfig) -> Version:
    from altdiffusion.execution.pipeline_step import run_pipeline_step
    from altdiffusion.execution.progress import Progress
    from altdiffusion.generation.steps import generation_steps

    prompts, images = generation_steps(lake.uri, PROMPTS, DATASET, config)
    run_pipeline_step(lake, prompts, backend="inline", progress=Progress("prompts", stream=io.StringIO()))
    (version,) = run_pipeline_step(lake, images, backend="inline")
    return version
