"""The statistics of evaluations against closed forms, published examples, SciPy, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm

from altdiffusion.evaluation.statistics import (
    Share,
    difference_of,
    holm,
    p_no_worse,
    ratio_of,
    share_of,
    wilson,
    z_of,
)

Z = z_of(0.95)


def one_each(values: NDArray[np.float64]) -> Share:
    """Return the share of cases that are clusters of their own."""
    return share_of(values, np.arange(len(values)))


def pair(both: int, first: int, second: int, neither: int) -> tuple[Share, Share]:
    """Return two shares from a 2 x 2 table of paired answers."""
    before = np.repeat([1.0, 1.0, 0.0, 0.0], [both, first, second, neither])
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [both, first, second, neither])
    return one_each(before), one_each(after)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 29), (15, 148), (81, 263), (128, 128)])
def test_wilsons_interval_is_scipys(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert one_each(np.arange(n) < right).limits(Z) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_128_of_128_is_not_certain() -> None:
    assert one_each(np.ones(128)).limits(Z) == pytest.approx((128 / (128 + Z**2), 1.0))


def test_wilson_covers_what_it_states_and_the_percentile_bootstrap_does_not() -> None:
    """Exact coverage at a true share of 0.99 of 128: all outcomes, weighted by their probability."""
    n, p = 128, 0.99
    right = np.arange(n + 1)
    chances = binom.pmf(right, n, p)
    limits = [wilson(k / n, n, Z) for k in right]
    covered = sum(chance for chance, (low, high) in zip(chances, limits, strict=True) if low <= p <= high)
    assert 0.93 < covered < 0.98
    low, high = binom.ppf(0.025, n, right / n) / n, binom.ppf(0.975, n, right / n) / n  # of the resampled share
    assert chances[(low <= p) & (p <= high)].sum() < 0.76


@pytest.mark.parametrize("table", [(36, 12, 2, 0), (20, 12, 2, 16), (53, 1, 0, 0), (0, 12, 2, 36)])
def test_the_paired_interval_is_newcombes(table: tuple[int, int, int, int]) -> None:
    """Against method 10 written out for a 2 x 2 table, and one result of Table II of his paper."""
    a, b, c, d = table
    first, second = pair(a, b, c, d)
    found = difference_of(second, first)  # his difference is the first minus the second
    n, cross = a + b + c + d, a * d - b * c
    phi = max(cross - n / 2, 0) if cross > 0 else cross
    phi /= math.sqrt((a + b) * (c + d) * (a + c) * (b + d)) or math.inf
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(p1, n, Z), wilson(p2, n, Z)
    below = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    above = math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    assert (found.low, found.high) == pytest.approx((p1 - p2 - below, p1 - p2 + above), abs=1e-12)
    if table == (36, 12, 2, 0):
        assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_p_value_is_mcnemars() -> None:
    first, second = pair(50, 3, 12, 9)
    assert difference_of(first, second).p == pytest.approx(binomtest(3, 15).pvalue)
    assert difference_of(first, first).p == 1.0


def test_images_of_one_concept_in_many_languages_are_no_independent_evidence() -> None:
    """17 languages that agree completely are one language; 17 independent ones are 17 times as many images."""
    rng = np.random.default_rng(7)
    concepts = np.repeat(np.arange(128), 17)
    groups = np.tile(np.arange(17), 128)
    agreeing = np.repeat(rng.random(128) < 0.8, 17)
    assert share_of(agreeing, concepts, groups).n == pytest.approx(128)
    independent = share_of(rng.random(128 * 17) < 0.8, concepts, groups)
    assert 1300 < independent.n <= 128 * 17
    errors = np.ones(128 * 17)
    assert share_of(errors, concepts, groups).n == pytest.approx(128)
    errors[0] = 0  # one error shows nothing of how errors cluster
    assert share_of(errors, concepts, groups).n == pytest.approx(128)


def clustered(rng: np.random.Generator, spread: float) -> tuple[Share, Share, float]:
    """Return two states on 60 concepts in 6 languages whose errors cluster, and the true difference."""
    skill = norm.ppf(0.85) * math.sqrt(1 + spread**2) + spread * rng.standard_normal((60, 1))
    noise = rng.standard_normal((2, 60, 6))
    lift = 0.3
    right = np.stack([skill + noise[0] > 0, skill + lift + (0.6 * noise[0] + 0.8 * noise[1]) > 0])
    truth = norm.cdf(norm.ppf(0.85) + lift / math.sqrt(1 + spread**2)) - 0.85
    concepts, groups = np.repeat(np.arange(60), 6), np.tile(np.arange(6), 60)
    first, second = (share_of(one.reshape(-1), concepts, groups) for one in right)
    return first, second, float(truth)


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_intervals_of_clustered_cases_cover_what_they_state(spread: float) -> None:
    rng = np.random.default_rng(np.random.Philox(key=13))
    shares = differences = ratios = 0
    runs = 800
    for _ in range(runs):
        first, second, truth = clustered(rng, spread)
        low, high = first.limits(Z)
        shares += low <= 0.85 <= high
        found = difference_of(first, second)
        differences += found.low <= truth <= found.high
        ratio = ratio_of(second, first)
        ratios += ratio.low <= 1 + truth / 0.85 <= ratio.high
    found_by = (shares, differences, ratios)
    assert all(0.925 < covered / runs < 0.99 for covered in found_by), found_by


def test_the_paired_interval_is_that_of_a_bootstrap_over_concepts() -> None:
    rng = np.random.default_rng(np.random.Philox(key=5))
    first, second, _ = clustered(rng, 1.0)
    found = difference_of(first, second)
    moved = second.sums - first.sums
    drawn = np.sort(moved[rng.integers(0, 60, (20_000, 60))].sum(axis=1))
    assert (found.low, found.high) == pytest.approx((drawn[500], drawn[19_500]), abs=0.012)


def test_no_worse_is_the_interval_read_as_a_test() -> None:
    first, second = pair(100, 6, 4, 18)
    p = p_no_worse(first, second, 0.05)
    low = difference_of(first, second).low
    assert p_no_worse(first, second, -low) == pytest.approx(0.025, abs=1e-6)
    assert p_no_worse(first, second, 0.2) < p < p_no_worse(first, second, 0.02)
    assert p_no_worse(first, one_each(np.zeros(128)), 0.05) == 1.0
    # T. Tango's score test (Statistics in Medicine 17, 1998) of the same hypothesis, restricted estimate and all.
    n, b, c, d = 128, 4, 6, -0.05
    square = -b - c + (2 * n - b + c) * d
    changed = (math.sqrt(square**2 + 8 * n * c * d * (1 - d)) - square) / (4 * n)
    score = (b - c - n * d) / math.sqrt(n * (2 * changed + d * (1 - d)))
    assert p == pytest.approx(norm.sf(score), abs=0.02)


def test_the_test_of_no_worse_errs_as_rarely_as_it_states() -> None:
    """At a true loss of exactly the margin, at most about 5 % of the tests at 5 % accept it."""
    rng = np.random.default_rng(np.random.Philox(key=3))
    accepted = 0
    for _ in range(600):
        before = rng.random(128) < 0.9
        after = np.where(rng.random(128) < 0.1, rng.random(128) < 0.4, before)
        accepted += p_no_worse(one_each(before), one_each(after), 0.05) < 0.05
    assert accepted / 600 < 0.075


def test_a_ratio_has_the_limits_of_its_parts() -> None:
    first, second = pair(60, 10, 20, 38)
    rate = ratio_of(first, second)
    assert rate.value == pytest.approx(70 / 80) and rate.low < rate.value < rate.high
    assert ratio_of(second, first).low == pytest.approx(1 / rate.high)
    nothing = ratio_of(one_each(np.zeros(50)), one_each(np.ones(50)))
    assert (nothing.value, nothing.low) == (0.0, 0.0) and 0.05 < nothing.high < 0.1
    all_right = ratio_of(one_each(np.ones(50)), one_each(np.ones(50)))
    assert all_right.low < 0.96 and all_right.high > 1.04


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
