"""Low-rank adapters instead of whole weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (training.model.lora): W + alpha / rank B A, of which A and B alone are trained."""

    rank: int = 16
    alpha: float | None = None
    """Null: as the rank, so that the adapters count once."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of linear layers, as the UNet's attention has them. Only layers that `trainable` names get adapters: `kv`
    leaves the cross-attention's to_k and to_v, `all` also those of self-attention."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank: must be at least 1; 4 to 64 are usual")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError("alpha: must be positive; null takes the rank")
        if not self.targets:
            raise ValueError("targets: none is given; name layers like to_k, to_v")

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
