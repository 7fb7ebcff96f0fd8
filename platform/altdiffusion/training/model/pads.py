"""Keys and values of a caption's padding, computed once per caption.

All pads behind a caption have the same vector (`text_encoder.has_one_pad`), and so the same key and the same value in
each cross-attention. The UNet attends to all of them, as it always did; only the products that make them are not
repeated. Captions of LAION have 10 to 30 tokens of 77.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def repeat_pads(unet: Any, tokens: int) -> int:
    """Have a UNet read contexts whose last column is also every one that follows, up to `tokens` columns, in place.

    Args:
        unet: a UNet2DConditionModel, with or without adapters.
        tokens: T, columns of a whole context. A context [B, T, D] is read as before.

    Returns:
        How many cross-attentions it has.
    """

    def repeat(_: Any, __: Any, made: Tensor) -> Tensor:
        missing = tokens - made.shape[1]
        return made if missing == 0 else torch.cat([made, made[:, -1:].expand(-1, missing, -1)], 1)

    found = 0
    for module in unet.modules():
        if getattr(module, "is_cross_attention", False):
            for product in (module.to_k, module.to_v):
                product.register_forward_hook(repeat)
            found += 1
    return found
