"""Memorisation and diversity against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from altdiffusion.evaluation.judge_images import RealImages
from altdiffusion.evaluation.outcomes import Case
from altdiffusion.evaluation.state_variety import Read, SpaceOfImages
from altdiffusion.evaluation.training_data import TrainingData
from altdiffusion.evaluation.variety import (
    copies,
    copy_threshold,
    distances_within,
    diversity,
    nearest_distances,
)


def at(*degrees: float) -> np.ndarray:
    """Return vectors of length 1 at angles of a circle."""
    angles = np.deg2rad(np.array(degrees, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_nearest_image_is_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = nearest_distances(at(0, 50, 90), at(60, 30, 180))
    assert distances == pytest.approx(1 - np.cos(np.deg2rad([30, 10, 30])), abs=1e-6)
    random = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    whole = nearest_distances(random[:20], random[20:])
    monkeypatch.setattr("altdiffusion.evaluation.variety._BLOCK", 60)  # blocks of 3
    assert nearest_distances(random[:20], random[20:]) == pytest.approx(whole, abs=1e-6)


def test_one_percent_of_the_controls_count_as_copies() -> None:
    controls = np.random.default_rng(0).permutation(np.arange(1, 251) / 1000)
    threshold = copy_threshold(controls)
    assert threshold == 0.003 and (controls < threshold).sum() == 2  # 1 % of 250, rounded down
    few = np.array([0.2, 0.1, 0.4])
    assert copy_threshold(few) == 0.1 and not (few < copy_threshold(few)).any()
    rate = copies(np.array([0.05, 0.05, 0.3, 0.2]), 0.1, np.array(["a", "b", "c", "d"]))
    assert (rate.value, rate.total) == (0.5, 4) and rate.low < 0.2 and rate.high > 0.8


def test_distances_are_those_of_all_pairs_of_different_parts() -> None:
    features = at(0, 60, 90, 10, 20, 45)
    groups, parts = np.array([7, 7, 7, 3, 3, 9]), np.array(["de", "en", "en", "de", "de", "de"])

    def cosine(degrees: int) -> float:
        return float(np.cos(np.deg2rad(degrees)))

    # Group 7: de-en 60 and 90 degrees; group 3 has one part, and group 9 one image.
    assert distances_within(features, groups, parts) == pytest.approx([1 - (cosine(60) + cosine(90)) / 2], abs=1e-6)
    every = distances_within(features, groups, np.arange(6))
    assert every == pytest.approx([1 - cosine(10), 1 - (cosine(60) + cosine(90) + cosine(30)) / 3], abs=1e-6)
    assert not len(distances_within(features[:1], groups[:1], parts[:1]))


def test_diversity_is_1_for_images_as_varied_as_the_real_ones() -> None:
    real = np.array([0.2, 0.4])
    same = diversity(np.array([0.4, 0.2]), real)
    assert same is not None and same.value == pytest.approx(1.0) and same.total == 2
    half = 1.959963984540054 * np.std([0.4, 0.2], ddof=1) / np.sqrt(2) / 0.3
    assert same.high - same.value == pytest.approx(half)
    collapsed = diversity(np.zeros(5), real)
    assert collapsed is not None and (collapsed.value, collapsed.low, collapsed.high) == (0.0, 0.0, 0.0)
    assert diversity(np.zeros(0), real) is None and diversity(real, np.zeros(0)) is None


def test_what_cannot_be_measured_is_absent_with_its_reason() -> None:
    """A pixel's first value is the angle of the features; two images of the judge are not a pair."""

    def features(pixels: np.ndarray) -> np.ndarray:
        return at(*pixels[:, 0, 0, 0])

    def real(*degrees: int) -> RealImages:
        pixels = np.zeros((len(degrees), 1, 1, 3), np.uint8)
        pixels[:, 0, 0, 0] = degrees
        return RealImages(pixels=pixels, shown=np.array(["cat"] * len(degrees)))

    unknown = TrainingData(latents=(), images=(), unknown=("model:base@1",))
    cases = [Case(concept="cat", language=code, group="pictures") for code in ("en", "de")]
    read = Read(ids=["a", "b"], named=np.array([["cat", "cat"]]), features=at(0, 60))
    space = SpaceOfImages(features, 1, {"judge": real(0, 1), "control": real(90)}, at_most=10)
    found = space.variety(read, cases, unknown)
    assert found.near_copies is None and found.nearest is None and found.seeds is None
    pairs = 1 - np.cos(np.deg2rad([90, 89])).mean()
    assert found.languages is not None and found.languages.value == pytest.approx(0.5 / pairs, abs=1e-5)
    assert found.absent == (
        "memorisation: lineage names no dataset that it learned from",
        "diversity over seeds: one image per prompt (sampling.count is 1)",
    )
    assert found.metrics() == {"diversity_languages": found.languages.value}
    nothing = Read(ids=[], named=np.zeros((1, 0)), features=np.zeros((0, 2), np.float32))
    assert space.variety(nothing, [], unknown).absent == ("it drew no image",)
