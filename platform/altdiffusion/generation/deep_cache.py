"""DeepCache: the UNet's deep blocks are computed at every n-th step, and their output is used again at those between.

Ma, Fang, Wang: DeepCache, CVPR 2024 (arXiv 2312.00858). With skip branch 1 and a uniform interval, as in the authors'
Stable Diffusion figures: at steps 0, n, 2n … the whole UNet is computed, and what enters the second last layer of its
last up block is kept (the paper's U_{m+1}). At the other steps only the outermost layers are computed: `conv_in`, the
first layer of the first down block, and the last two layers of the last up block, which read those two skip connections
and the kept feature.

Shapes: n rows (twice as many with guidance), T text positions, D context width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError

Unet = Callable[..., tuple[Tensor, ...]]
"""Called as `UNet2DConditionModel` is: (sample, timestep, encoder_hidden_states=…, return_dict=False)."""
KNOWN_BLOCKS = frozenset({"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"})
UNUSED = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "time_embedding_act_fn", "encoder_hid_dim",
    "center_input_sample",
)  # fmt: skip
"""Settings of a UNet whose computation is not repeated here; Stable Diffusion has none of them."""


class DeepCache:
    """A UNet that can leave its deep blocks out.

    Args:
        unet: `UNet2DConditionModel` of Stable Diffusion's blocks.
        every: n; the deep blocks are computed at every n-th call of a batch.

    Raises:
        AltDiffusionError: the UNet has other blocks.
    """

    def __init__(self, unet: Any, every: int) -> None:
        check_blocks(unet.config)
        self._unet = unet
        self._every = every
        self.whole: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = self._whole
        self.outer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = self._outer

    def begin(self) -> Unet:
        """Return what takes the place of the UNet for all steps of one batch, in their order."""
        kept: Tensor | None = None
        calls = 0

        def call(sample: Tensor, timestep: Tensor, *, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, ...]:
            nonlocal kept, calls
            if calls % self._every == 0 or kept is None:
                output, kept = self.whole(sample, timestep, encoder_hidden_states)
            else:
                output = self.outer(sample, timestep, encoder_hidden_states, kept)
            calls += 1
            return (output,)

        return call

    def _whole(self, sample: Tensor, timestep: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the UNet's output [n, C, H, W], and what enters the second last layer of its last up block."""
        unet = self._unet
        time = self._time(sample, timestep)
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=time, **_text(block, context))
            skips += more
        if unet.mid_block is not None:
            hidden = unet.mid_block(hidden, time, **_text(unet.mid_block, context))
        *ups, last = unet.up_blocks
        for block in ups:
            own = len(block.resnets)
            hidden = block(
                hidden_states=hidden, temb=time, res_hidden_states_tuple=tuple(skips[-own:]), **_text(block, context)
            )
            del skips[-own:]
        for layer in range(len(last.resnets) - 2):
            hidden = _up(last, layer, hidden, skips.pop(), time, context)
        return self._end(hidden, skips, time, context), hidden

    def _outer(self, sample: Tensor, timestep: Tensor, context: Tensor, kept: Tensor) -> Tensor:
        """Return the output [n, C, H, W] that the outermost layers give with a kept feature."""
        unet = self._unet
        time = self._time(sample, timestep)
        first = unet.conv_in(sample)
        second = _layer(unet.down_blocks[0], 0, first, time, context)
        return self._end(kept, [first, second], time, context)

    def _end(self, hidden: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        """Return the output of the last two layers and of what follows."""
        unet = self._unet
        last = unet.up_blocks[-1]
        layers = len(last.resnets)
        for layer, skip in zip((layers - 2, layers - 1), (skips[1], skips[0]), strict=True):
            hidden = _up(last, layer, hidden, skip, time, context)
        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        output: Tensor = unet.conv_out(hidden)
        return output

    def _time(self, sample: Tensor, timestep: Tensor) -> Tensor:
        embedded: Tensor = self._unet.time_embedding(self._unet.get_time_embed(sample=sample, timestep=timestep))
        return embedded


def check_blocks(config: Any) -> None:
    """Refuse a UNet whose computation differs from Stable Diffusion's.

    Args:
        config: its settings, a mapping.

    Raises:
        AltDiffusionError: the error states the setting.
    """
    blocks = {*config["down_block_types"], *config["up_block_types"]} - KNOWN_BLOCKS
    other = [f"has blocks {', '.join(sorted(blocks))}"] if blocks else []
    other += [f"has {name} {config[name]}" for name in UNUSED if config.get(name)]
    if other:
        raise AltDiffusionError("speed.deep_cache: the UNet", other[0], "leave deep_cache out for this model")


def _layer(block: Any, number: int, hidden: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """Return the output of one layer of a block: a residual block, and a transformer where the block has them."""
    hidden = block.resnets[number](hidden, time)
    if _text(block, context):
        hidden = block.attentions[number](hidden, encoder_hidden_states=context, return_dict=False)[0]
    return hidden


def _up(block: Any, number: int, hidden: Tensor, skip: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """Return the output of one layer of an up block, which also reads a skip connection."""
    return _layer(block, number, torch.cat((hidden, skip), dim=1), time, context)


def _text(block: Any, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
