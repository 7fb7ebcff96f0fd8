"""`altdiffusion.generate`: images of prompts in one call, recorded in a lake with their lineage."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from altdiffusion.api.versions import Lake
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import ImageFormat, SamplerName

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One generated image."""

    id: str
    prompt: str
    seed: int
    data: bytes
    """The encoded image, with its record: `altdiffusion lineage up FILE` leads from a file of it to its data."""
    format: ImageFormat
    dataset: str
    """Reference of the version that holds it."""

    @property
    def image(self) -> Image.Image:
        """The image, decoded (Pillow, RGB)."""
        from PIL import Image

        return Image.open(io.BytesIO(self.data)).convert("RGB")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the encoded image, unchanged, to a file; the file's ending has to be its format's.

        Raises:
            AltDiffusionError: the ending is another format's.
        """
        ending = os.path.splitext(path)[1].lower().replace(".jpeg", ".jpg")
        if ending != f".{self.format}":
            raise AltDiffusionError(
                f"file {os.fspath(path)}", f"would hold an image in {self.format}", f"let it end in .{self.format}"
            )
        with open(path, "wb") as file:
            file.write(self.data)


def generate(
    prompts: str | Sequence[str],
    *,
    model: str,
    lake: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    count: int = 1,
    seed: int | None = None,
    negative_prompt: str = "",
    steps: int = 50,
    guidance_scale: float = 9.0,
    sampler: SamplerName = "ddim",
    image_format: ImageFormat = "png",
    device: Literal["cpu", "cuda"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> list[Drawn]:
    """Return the images of prompts, in their order. It is `altdiffusion generate`, and draws the same bytes.

    The same call again draws nothing: the images are read from the lake. What was cut off or refused is a warning.

    Args:
        prompts: one text or several, in any language.
        model: a run of the lake or run/step-N, a folder in diffusers' layout, or hf://owner/name@COMMIT.
        lake: folder or address where the images are recorded; a new folder becomes a lake.
        size: width and height in pixels; None for the model's own.
        count: images per prompt.
        seed: of a prompt's first image; None for one from the prompt.
        device: None for cuda where there is one.
        dtype: None for float32, or for float16 on cuda.

    Raises:
        AltDiffusionError: the model, a prompt or a setting is not usable; nothing is drawn then.
    """
    from altdiffusion.cli.drawing_arguments import machine_settings
    from altdiffusion.cli.model_argument import model_settings
    from altdiffusion.generation.by_hand import draw_texts

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(text.strip() for text in texts):
        raise AltDiffusionError("a prompt", "is blank", "give a text")
    opened = Lake(os.fspath(lake))
    settings: dict[str, Any] = {
        "model": model_settings(os.fspath(model), opened.uri),
        "count": count,
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "image_format": image_format,
        **machine_settings(device, dtype),
    }
    version = draw_texts(
        opened, texts, settings, size=size, seed=seed, caller="generate()",
        warn=lambda line: warnings.warn(line, stacklevel=3),
    )  # fmt: skip
    return [
        Drawn(
            id=row["id"], prompt=row["prompt"], seed=row["seed"], data=row["image"],
            format=cast(ImageFormat, row["image_format"] or "png"), dataset=str(version.ref),
        )
        for table in version.iter_tables(("id", "prompt", "seed", "image", "image_format"))
        for row in table.to_pylist()
    ]  # fmt: skip
