"""What is checked and shown of windows and tiles before anything is drawn."""

from __future__ import annotations

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.image_rows import image_counts
from altdiffusion.generation.model import Model, pixels_per_latent, size_multiple
from altdiffusion.generation.prompt_regions import regions_of
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.generation.windows import is_whole, parts_of


def check_windows(config: GenerateConfig, model: Model) -> None:
    """Refuse windows or tiles of a size that a model cannot draw.

    Raises:
        AltDiffusionError: the error states the setting and what it must be a multiple of.
    """
    multiple, factor = size_multiple(model), pixels_per_latent(model)
    wanted = {} if config.windows is None else dict.fromkeys(("side", "overlap"), multiple)
    for name, whole in wanted.items():
        pixels = getattr(config.windows, name)
        if pixels % whole:
            raise AltDiffusionError(
                f"generate.windows.{name} {pixels}",
                f"is not a multiple of {whole} pixels, as the windows of model {model.uri} must be",
                f"give e.g. {max(pixels // whole, 1) * whole}",
            )
    if config.vae_tiling is not None and config.vae_tiling % (4 * factor):
        raise AltDiffusionError(
            f"generate.vae_tiling {config.vae_tiling}",
            f"is not a multiple of {4 * factor} pixels: tiles overlap by a quarter, which must be whole latents of "
            f"{factor} pixels",
            f"give e.g. {max(config.vae_tiling // (4 * factor), 1) * 4 * factor}",
        )


def describe_windows(prompts: pa.Table, config: GenerateConfig, model: Model) -> list[str]:
    """Return a line for a dry run: how many windows the images have, and how many calls of the UNet that makes.

    Args:
        prompts: with the columns of `records.PROMPTS`.
    """
    factor, windows = pixels_per_latent(model), config.windows
    counted = prompts.select(["width", "height", "regions"]).append_column(
        "images", pa.array(image_counts(prompts, config))
    )
    groups = counted.group_by(["width", "height", "regions"]).aggregate([("images", "sum")]).to_pylist()
    images = passes = 0
    each: set[int] = set()
    for group in groups:
        sizes = group["height"] // factor, group["width"] // factor
        spans = [one.span for one in regions_of(group["regions"])]
        side, overlap = (None, 0) if windows is None else (windows.side // factor, windows.overlap // factor)
        parts = parts_of(*sizes, spans, side, overlap, windows is not None and windows.circular)
        if not is_whole(parts):
            images += group["images_sum"]
            passes += group["images_sum"] * len(parts)
            each.add(len(parts))
    if not images:
        return [] if windows is None else [f"windows  no image is larger than a window of {windows.side} pixels"]
    span = f"{min(each)}" if len(each) == 1 else f"{min(each)} to {max(each)}"
    calls = -(-passes // config.batch_rows)
    return [
        f"windows  {images:,} images of {span} windows or regions each: {passes:,} in {calls:,} or more calls of the "
        f"UNet per sampler step, {config.batch_rows:,} at once"
    ]
