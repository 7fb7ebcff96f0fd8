"""Rows of images: encoded bytes in the cache, pixels when a batch asks for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from altdiffusion.diffusion.image_crop import Unreadable, crop, offsets, open_rgb
from altdiffusion.diffusion.text_encoder import check_captions, tokenize
from altdiffusion.training.config.online import OnlineConfig
from altdiffusion.training.data.layout import Layout, Rows, one_array


@dataclass(frozen=True, kw_only=True)
class ImageLayout(Layout):
    """Rows of kind `images` as `pixels` uint8 [B, R, R, 3], `sample_ids` int64 [B] and `token_ids` int32 [B, T].

    A row group in the cache is bytes as they are stored, `body` uint8 [all bytes] with `starts` int64 [rows + 1]: a
    tenth of its pixels. Images are decoded, resized and cropped as in the encode job, by several threads. The offsets
    of the crop are keyed by (seed, sample_id). An image smaller than R is enlarged.
    """

    resolution: int
    pool: ThreadPoolExecutor = field(repr=False)

    def empty(self, group: Rows, count: int) -> Rows:
        return {
            "pixels": torch.empty((count, self.resolution, self.resolution, 3), dtype=torch.uint8),
            "sample_ids": torch.empty(count, dtype=torch.int64),
            "token_ids": group["token_ids"].new_empty((count, *group["token_ids"].shape[1:])),
        }

    def fill(
        self, group: Rows, index: Tensor, into: Rows, mirrored: npt.NDArray[np.bool_] | None = None
    ) -> list[Future[None]]:
        for name in ("sample_ids", "token_ids"):
            torch.index_select(group[name], 0, index, out=into[name])
        pixels = into["pixels"].numpy()
        return [
            self.pool.submit(self._draw, group, row, pixels[number], mirrored is not None and bool(mirrored[number]))
            for number, row in enumerate(index.tolist())
        ]

    def _draw(self, group: Rows, row: int, out: npt.NDArray[np.uint8], mirrored: bool) -> None:
        """Write the pixels of one image, uint8 [R, R, 3]."""
        start, stop = group["starts"][row : row + 2].tolist()
        try:
            rgb = open_rgb(group["body"][start:stop].numpy().tobytes())
        except Unreadable as unreadable:
            raise Unreadable(f"sample {int(group['sample_ids'][row])}: {unreadable}") from unreadable
        found, _ = crop(rgb, (self.resolution, self.resolution), group["offsets"][row].numpy())
        out[:] = found[:, ::-1] if mirrored else found


def image_layout(config: OnlineConfig, tokenizer: Any) -> ImageLayout:
    """Return the layout of a run's images.

    Args:
        config: with a seed; the run's own where the config's is null.
    """
    assert config.seed is not None
    seed = config.seed

    def decode(table: pa.Table) -> Rows:
        captions = table.column("caption").to_pylist()
        check_captions(captions)
        sample_ids = table.column("sample_id").to_numpy()
        images = one_array(table, "image")
        starts = np.frombuffer(images.buffers()[1], np.int32)[images.offset : images.offset + len(images) + 1]
        body = np.frombuffer(images.buffers()[2], np.uint8)[starts[0] : starts[-1]]
        return {
            "body": torch.from_numpy(body.copy()),
            "starts": torch.from_numpy(starts.astype(np.int64) - int(starts[0])),
            "sample_ids": torch.from_numpy(sample_ids.astype(np.int64)),
            "offsets": torch.from_numpy(offsets(seed, sample_ids)),
            "token_ids": tokenize(tokenizer, captions).to(torch.int32),
        }

    return ImageLayout(
        kind="images",
        columns=("sample_id", "caption", "image"),
        decode=decode,
        remedy="name a dataset of images, or leave `online` out to train on latents",
        row_tensors=False,
        resolution=config.resolution,
        pool=ThreadPoolExecutor(config.threads, thread_name_prefix="images"),
    )
