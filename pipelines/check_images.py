"""Curation's scorers as a checker of drawn images: generation may not import curation, so that the pipeline lends them.

An image is scored as it was encoded, so what is judged is what would be delivered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from altdiffusion.config import semantic
from altdiffusion.constraints import Checked, Invalid
from altdiffusion.curation.config import FilterConfig, ScoreConfig
from altdiffusion.curation.scoring.score_work import ImageScorer
from altdiffusion.curation.scoring.scored import failing, row_detail
from altdiffusion.generation.generate_work import Check


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCheckConfig(Checked):
    """Which images are refused: what is scored, as in the job `score`, and the thresholds, as filters of `encode`."""

    score: ScoreConfig
    filter: FilterConfig

    def conflicts(self) -> Iterator[Invalid]:
        if not self.filter.thresholds:
            yield Invalid("filter", "has no threshold, so that no image is checked", "give e.g. nsfw_below: 0.5")
        for name in self.filter.thresholds:
            if name not in self.score.scorers:
                yield Invalid("filter", f"has a threshold for {name}, which is not scored", f"set score.{name}")
        if self.filter.keep_null:
            yield Invalid("filter", "keeps images without a score", "leave keep_null out: every image has a score")


@dataclass(frozen=True, kw_only=True)
class ImageChecker:
    """Makes what refuses images; it is picklable, and loads the models when it is called."""

    config: ImageCheckConfig

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for a step's fingerprint: thresholds, and models by their digests."""
        return {"image_check": semantic(self.config)}

    def try_out(self) -> None:
        """Load the models on the CPU, since a job's driver may have no GPU; it raises as a call does."""
        ImageScorer(dataclasses.replace(self.config.score, device="cpu"))

    def __call__(self) -> Check:
        """Load the models.

        Raises:
            AltDiffusionError: weights are missing, not those pinned, or do not fit each other.
        """
        scorer, filter = ImageScorer(self.config.score), self.config.filter

        def check(images: Sequence[bytes]) -> list[str]:
            scores, unreadable = scorer.score(pa.chunked_array([images], pa.binary()))
            if unreadable:  # our own encoder made them
                raise RuntimeError(f"a drawn image cannot be read: {next(iter(unreadable.values()))}")
            details = [""] * len(images)
            for name, dropped in failing(scores, filter):
                for row in dropped.nonzero()[0]:
                    details[row] = details[row] or row_detail(scores, name, int(row))
            return details

        return check
