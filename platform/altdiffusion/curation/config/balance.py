"""How the languages of a set are weighed against each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig:
    """Which of the distinct links stay, by language: first by similarity, then by number."""

    similarity_quantile: dict[str, float] | float | None = None
    """Share of each language's rows to drop, those least similar to their images: one for all, or by language.
    Similarity is not on one scale for all languages, so a share is fairer than a threshold."""
    rows_per_language: int | None = None
    """The largest language keeps about so many rows, no language more."""
    temperature: float | None = None
    """Languages are weighed as rows ** (1 / temperature): 1 leaves them as they are, more evens them out."""
    seed: int = 0
    """Key of the draws, together with the row's sample_id."""
    rows_per_unit: int = 65_536

    def __post_init__(self) -> None:
        shares = self.similarity_quantile
        for name, share in shares.items() if isinstance(shares, dict) else [("", 0.0 if shares is None else shares)]:
            if not 0.0 <= share < 1.0:
                key = f"similarity_quantile.{name}" if name else "similarity_quantile"
                raise ValueError(f"{key}: is the share that is dropped; give a number from 0 to below 1")
        if self.rows_per_language is not None and self.rows_per_language < 1:
            raise ValueError("rows_per_language: must be at least 1; give null for no limit")
        if self.temperature is not None and self.temperature < 1.0:
            raise ValueError("temperature: must be at least 1, which changes nothing; give e.g. 2")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 65536")

    def quantile(self, language: str) -> float:
        """The share of a language's rows that its similarity threshold drops."""
        shares = self.similarity_quantile
        return (shares.get(language, 0.0) if isinstance(shares, dict) else shares) or 0.0
