"""Low-rank adapters instead of whole weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from altdiffusion.constraints import Checked, at_least, not_empty, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Checked):
    """Low-rank adapters (training.model.lora): W + alpha / rank B A, of which A and B alone are trained."""

    rank: Annotated[int, at_least(1, "4 to 64 are usual")] = 16
    """Rank of each adapter."""
    alpha: Annotated[float | None, positive("null takes the rank")] = None
    """Null: as the rank, so that the adapters count once."""
    targets: Annotated[tuple[str, ...], not_empty("name layers like to_k, to_v")] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of linear layers, as the UNet's attention has them. Only layers that `trainable` names get adapters: `kv`
    leaves the cross-attention's to_k and to_v, `all` also those of self-attention."""

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
