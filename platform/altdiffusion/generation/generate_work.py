"""Generation as units: row ranges of a `prompts` version in, images out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.units import Unit
from altdiffusion.generation.model import Model, check_content, check_sampling, size_multiple
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.records import GENERATIONS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord


class GenerateWork(RangeWork):
    """The work on a row range of prompts: its images become a shard of kind `generations` and image files."""

    def __init__(self, lake_uri: str, dataset: str, model: Model, config: GenerateConfig) -> None:
        super().__init__(lake=lake_uri, dataset=dataset)
        self._model = model
        self._config = config
        self._sampler: Any = None

    def setup(self) -> None:
        """Load the model, once its content is known to be what was planned with."""
        import torch

        from altdiffusion.diffusion.models import load_bundle
        from altdiffusion.generation.sampler import Sampler

        check_content(self._model)
        config = self._config
        torch.set_num_threads(config.threads)
        self._sampler = Sampler(
            load_bundle(self._model.uri, config.device, getattr(torch, config.dtype)),
            sampler=config.sampler,
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            batch_rows=config.batch_rows,
        )

    def run(self, unit: Unit) -> UnitRecord:
        """Draw the rows of one unit and write them."""
        rows = self.rows_of(unit)
        encoded = self._draw(rows)
        names = [files.sha256_hex(data) for data in encoded]
        config, count = self._config, rows.num_rows
        table = pa.table(
            [
                *(rows[name] for name in rows.schema.names),
                pa.array(encoded, pa.binary()),
                pa.array(names, pa.string()),
                pa.array([str(self._model.ref)] * count, pa.string()),
                pa.array(np.full(count, config.steps, np.int32)),
                pa.array(np.full(count, config.guidance_scale, np.float32)),
                pa.array([config.sampler] * count, pa.string()),
            ],
            schema=GENERATIONS,
        )
        if config.image_files:
            folder = images_folder(self.lake, self.dataset)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda item: _write_image(folder, *item), zip(names, encoded, strict=True)))
        return finish_unit(self.output, unit, rows_in=count, accepted=[table])

    def _draw(self, rows: pa.Table) -> list[bytes]:
        """Return PNG bytes in row order; rows of one size are drawn together."""
        prompts, seeds = rows["prompt"].to_pylist(), rows["seed"].to_pylist()
        sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
        encoded: list[bytes] = [b""] * rows.num_rows
        for width, height in dict.fromkeys(sizes):
            chosen = [row for row, size in enumerate(sizes) if size == (width, height)]
            drawn = self._sampler.draw([prompts[row] for row in chosen], [seeds[row] for row in chosen], width, height)
            for row, image in zip(chosen, drawn, strict=True):
                encoded[row] = encode_png(image)
        return encoded


def generation_units(prompts: Version, model: Model, config: GenerateConfig) -> list[Unit]:
    """Return the units of `GenerateWork`. The model's content is part of their ids: another model is other work.

    Raises:
        AltDiffusionError: a prompt requires a size that the model cannot draw, or its noise schedule does not support
            the sampler or the number of steps.
    """
    check_sampling(model, config.sampler, config.steps)
    multiple = size_multiple(model)
    for index in range(len(prompts.shards)):
        sizes = prompts.read_shard(index, ["id", "width", "height"])
        wrong = [
            pc.not_equal(pc.multiply(pc.divide(sizes[side], multiple), multiple), sizes[side])
            for side in ("width", "height")
        ]
        bad = sizes.filter(pc.or_(*wrong)).slice(0, 1).to_pylist()
        if bad:
            raise AltDiffusionError(
                f"prompt {bad[0]['id']} of {prompts.ref.short}",
                f"requires {bad[0]['width']} x {bad[0]['height']} pixels; the model draws multiples of {multiple}",
                "change its width and height",
            )
    return plan_ranges(prompts, config.rows_per_unit, model.content)


def images_folder(lake_uri: str, dataset: str) -> str:
    """Return the URI of the folder of image files, named <sha256>.png, next to a generations dataset's shards."""
    return files.within(lake_uri, "datasets", dataset, "images")


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return PNG bytes of uint8 [H, W, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image, "RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def decode_images(images: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return the pixels of encoded images of one size, uint8 [N, H, W, 3]."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])


def _write_image(folder: str, name: str, data: bytes) -> None:
    uri = files.join(folder, f"{name}.png")
    if not files.exists(uri):
        files.write_atomic(uri, data)
