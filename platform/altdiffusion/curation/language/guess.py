"""What an engine answers for a column of captions: the best language of each, and what the decision needs besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The best language of T captions, whether or not it is believed."""

    labels: npt.NDArray[np.object_]
    """[L + 1] the model's labels, then UNKNOWN."""
    number: npt.NDArray[np.intp]
    """[T] which of them."""
    score: npt.NDArray[np.float32]
    """[T] probability among what the letters allow, times the share of the text in that script; 0 to 1."""
    letters: npt.NDArray[np.int32]
    """[T] weighted number of letters."""
    open: npt.NDArray[np.bool_]
    """[T] whether it is Chinese or Japanese, and the letters leave open which."""

    @property
    def code(self) -> npt.NDArray[np.object_]:
        """[T] label, UNKNOWN where there is nothing to judge."""
        return self.labels[self.number]


class LanguageEngine(Protocol):
    """Finds the best language of captions; it is loaded once per worker."""

    labels: tuple[str, ...]
    """Labels of its model."""

    def guess(self, captions: pa.Array) -> Guess:
        """Return the best language of each caption (string, nulls allowed)."""
