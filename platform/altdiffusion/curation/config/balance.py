"""How the languages of a set are weighed against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.constraints import Checked, Invalid, at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig(Checked):
    """Which of the distinct links stay, by language: first by similarity, then by number."""

    similarity_quantile: dict[str, float] | float | None = None
    """Share of each language's rows to drop, those least similar to their images: one for all, or by language.
    Similarity is not on one scale for all languages, so a share is fairer than a threshold."""
    rows_per_language: Annotated[int | None, at_least(1, "give null for no limit")] = None
    """The largest language keeps about this many rows, and no language keeps more."""
    temperature: Annotated[float | None, at_least(1, "1 changes nothing; give e.g. 2")] = None
    """Languages are weighed as rows ** (1 / temperature): 1 leaves them as they are, more evens them out."""
    seed: int = 0
    """Key of the draws, together with the row's sample_id."""
    rows_per_unit: Annotated[int, at_least(1)] = 65_536
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""

    def conflicts(self) -> Iterator[Invalid]:
        shares = self.similarity_quantile
        for name, share in shares.items() if isinstance(shares, dict) else [("", 0.0 if shares is None else shares)]:
            if not 0.0 <= share < 1.0:
                key = f"similarity_quantile.{name}" if name else "similarity_quantile"
                yield Invalid(key, "is not a share of the rows to drop", "give a number from 0 to below 1")

    def quantile(self, language: str) -> float:
        """Return the share of a language's rows that its similarity threshold drops."""
        shares = self.similarity_quantile
        return (shares.get(language, 0.0) if isinstance(shares, dict) else shares) or 0.0
