"""Attention-output matching: a student's text context is compared by the outputs of the UNet's cross-attention.

The positions of two languages do not correspond: their order and their number of tokens differ, and CLIP's encoder is
causal (its first vector is the same for every caption) while XLM-R's is not. But the UNet does not use text positions
either. All that reaches it, in each cross-attention layer and head, is

    answer(q) = to_out(softmax(q K^T / sqrt(d)) V),   K = to_k(context), V = to_v(context),   q = to_q(norm2(x))

(diffusers `BasicTransformerBlock`; Vaswani et al., arXiv 1706.03762), which does not depend on the order of the
positions. Two contexts with equal answers to every query are the same text to the UNet, so contexts are compared by
their answers. `norm2` is a LayerNorm, hence a query of the UNet is `to_q(gamma z + beta)` with z of zero mean and unit
variance over its entries. Therefore z is drawn as a normalised Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLOOR = 1e-8
"""Avoids a division by 0 in a layer whose answer to the empty caption is 0."""


class _Layer(nn.Module):  # type: ignore[misc]
    """One cross-attention layer of a UNet, frozen."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn2
        self.norm, self.heads, self.scale = block.norm2, int(attention.heads), float(attention.scale)
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]
        self.channels = int(self.to_q.in_features)

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the answers [B, Q, C] of context [B, T, D] to the queries made from z [Q, C]."""
        query = self.to_q(self.norm(z)).expand(len(context), -1, -1)
        answer = F.scaled_dot_product_attention(
            self._split(query), self._split(self.to_k(context)), self._split(self.to_v(context)), scale=self.scale
        )
        out: Tensor = self.to_out(answer.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Split the heads: [B, N, heads d] -> [B, heads, N, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ReadOut(nn.Module):  # type: ignore[misc]
    """The cross-attention layers of a UNet, without the rest of it, frozen."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        blocks = [module for module in unet.modules() if getattr(module, "attn2", None) is not None]
        self.layers = nn.ModuleList(_Layer(block) for block in blocks)
        self.requires_grad_(False)

    @property
    def numbers(self) -> int:
        """Number of random numbers for one query of every layer."""
        return sum(layer.channels for layer in self.layers)

    def answers(self, draw: Tensor, context: Tensor) -> list[Tensor]:
        """Return each layer's answers [B, Q, C] of context [B, T, D] to the queries made from `draw` [Q, numbers]."""
        parts = draw.split([layer.channels for layer in self.layers], dim=1)
        return [layer(z, context) for layer, z in zip(self.layers, parts, strict=True)]


def readout_error(student: Sequence[Tensor], teacher: Sequence[Tensor], empty: Sequence[Tensor]) -> Tensor:
    """Return the mean over layers of |student - teacher|^2 / |empty|^2.

    The scale gives weight to deep layers, whose answers are small. It does not depend on a sample, so the error of a
    batch is the mean of its samples' errors, for any micro-batch.

    Args:
        student: each layer's answers, [B, Q, C].
        teacher: the same of the teacher.
        empty: each layer's answers of the teacher's empty caption, [1, Q, C], which set the scale.
    """
    errors = [
        (mine.float() - wanted.float()).square().mean() / (none.float().square().mean() + _FLOOR)
        for mine, wanted, none in zip(student, teacher, empty, strict=True)
    ]
    return torch.stack(errors).mean()
