"""From features to the measured values, per language and in the mean over languages.

| measure | value | interval per language | of the mean over languages | |---|---|---|---| | fid | Fréchet distance |
none: a bootstrap of FID is biased, for its copies lower the rank | none | | kid | mean over blocks | Student's t over
blocks | the same, of each block's mean over languages, as far as all have blocks | | cmmd | 1,000 MMD^2 | jackknife
over groups of images | the same, of each group's mean over languages | | is | mean over splits | Student's t over
splits | the same, of each split's mean over languages | | clip_sim_* | mean cosine | bootstrap over concepts | the
same, a concept's languages drawn together | | retrieval@k | share of texts | Wilson | Wilson with as many trials as
the smallest language has texts |

In a mean every language weighs the same. What languages share, their concepts and real images, is thus not taken for
independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.evaluation.measures import estimate, kernels
from altdiffusion.evaluation.measures.estimate import Estimate
from altdiffusion.evaluation.measures.frechet import check_rows, frechet_distance
from altdiffusion.evaluation.measures.gather import Gathered, gather
from altdiffusion.evaluation.measures.settings import REFERENCE_MEASURES, MeasuresConfig
from altdiffusion.evaluation.measures.text_fit import ranks
from altdiffusion.storage.dataset import Version

Array = NDArray[np.float64]
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one state."""

    languages: Mapping[str, Estimate]
    mean: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"languages": {code: one.to_json() for code, one in self.languages.items()}, MEAN: self.mean.to_json()}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One measure of one language: its value, and the parts that the interval of a mean is made of."""

    estimate: Estimate
    parts: Array
    """Blocks or splits of kid and is; the jackknife's values of cmmd; one cosine per image of clip_sim."""
    concepts: Sequence[str] = ()
    """Concept of each cosine."""
    trials: int = 0
    """Texts of retrieval."""


def measure(
    drawn: Version, reference: Version | None, languages: Sequence[str], config: MeasuresConfig
) -> dict[str, Measured]:
    """Return every measure of a state by name.

    Only one language's sample, and the reference's, are in memory at a time.

    Args:
        drawn: features of the state's images.
        reference: features of the real images.
        languages: the languages in the order of the result; one without an image is an error.

    Raises:
        AltDiffusionError: a set has too few images for FID.
        ValueError: a language has no image.
    """
    parts: dict[str, dict[str, _Part]] = {}
    against = set(config.measures) & set(REFERENCE_MEASURES)
    shared = None
    if against and reference is not None and not config.reference_by_language:
        shared = gather(reference, config, language=None, distinct=True)
    for code in languages:
        images = gather(drawn, config, language=code)
        if not images.rows:
            raise ValueError(f"{drawn.ref.short} has no image in {code}")
        real = shared
        if against and reference is not None and real is None:
            real = gather(reference, config, language=code, distinct=True)
        for name, part in _parts_of(code, images, real, config).items():
            parts.setdefault(name, {})[code] = part
    return {
        name: Measured(languages={code: part.estimate for code, part in by.items()}, mean=_mean(name, by, config.seed))
        for name, by in parts.items()
    }


def _parts_of(code: str, images: Gathered, real: Gathered | None, config: MeasuresConfig) -> dict[str, _Part]:
    found: dict[str, _Part] = {}
    wanted = set(config.measures)
    if real is not None:
        if "fid" in wanted:
            found["fid"] = _fid(code, images, real)
        if "kid" in wanted:
            values = kernels.kid_blocks(
                images.sampled("features"), real.sampled("features"), config.kid_block, seed=config.seed
            )
            found["kid"] = _Part(estimate=estimate.of_parts(values, images.rows), parts=values)
        if "cmmd" in wanted:
            value, without = kernels.cmmd(images.sampled("image_embedding"), real.sampled("image_embedding"))
            found["cmmd"] = _Part(estimate=estimate.of_jackknife(value, without, images.rows), parts=without)
    if "is" in wanted and images.classes is not None:
        values = images.classes.scores()
        found["is"] = _Part(estimate=estimate.of_parts(values, images.rows), parts=values)
    for name, pieces in images.cosines.items():
        if f"clip_sim_{name}" in wanted:
            values = np.concatenate(pieces)
            one = estimate.of_groups(values, images.concepts, seed=config.seed)
            found[f"clip_sim_{name}"] = _Part(estimate=one, parts=values, concepts=images.concepts)
    if "retrieval" in wanted:
        texts, shown = images.one_per_prompt()
        rank = ranks(texts, shown)
        for k in config.recall_at:
            one = estimate.of_share(float((rank <= k).mean()), len(rank), images.rows)
            found[f"retrieval@{k}"] = _Part(estimate=one, parts=np.empty(0), trials=len(rank))
    return found


def _fid(code: str, images: Gathered, real: Gathered) -> _Part:
    if images.moments is None or real.moments is None:
        raise ValueError(f"no features were gathered for {code}")
    width = len(images.moments.mean)
    check_rows(f"images in {code}", images.rows, width)
    check_rows(f"real images for {code}", real.rows, width)
    value = frechet_distance(images.moments, real.moments)
    return _Part(estimate=_bare(value, images.rows), parts=np.empty(0))


def _mean(name: str, by: Mapping[str, _Part], seed: int) -> Estimate:
    """Return the unweighted mean over languages."""
    parts = list(by.values())
    rows = sum(part.estimate.rows for part in parts)
    value = float(np.mean([part.estimate.value for part in parts]))
    if name in ("kid", "is"):
        count = min(len(part.parts) for part in parts)
        values: Array = np.mean([part.parts[:count] for part in parts], axis=0)
        return estimate.of_parts(values, rows)
    if name == "cmmd":
        same = len({len(part.parts) for part in parts}) == 1
        without = np.mean([part.parts for part in parts], axis=0) if same else np.empty(0)
        return estimate.of_jackknife(value, without, rows)
    if name.startswith("clip_sim"):
        return estimate.of_groups(
            np.concatenate([part.parts for part in parts]),
            [concept for part in parts for concept in part.concepts],
            weights=np.concatenate([np.full(len(part.parts), 1 / len(part.parts)) for part in parts]),
            seed=seed,
        )
    if name.startswith("retrieval"):
        return estimate.of_share(value, min(part.trials for part in parts), rows)
    return _bare(value, rows)


def _bare(value: float, rows: int) -> Estimate:
    return Estimate(value=value, low=None, high=None, rows=rows)
