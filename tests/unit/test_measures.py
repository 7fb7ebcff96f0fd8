"""Formulas of the measures, against closed forms, plain loops and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import sqrtm

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures import estimate, kernels, text_fit
from altdiffusion.evaluation.measures.frechet import check_rows, frechet_distance
from altdiffusion.evaluation.measures.inception_score import ClassSums
from altdiffusion.evaluation.measures.moments import Moments

RANDOM = np.random.default_rng(0)


def gaussian(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Moments:
    """Return exactly these moments, as if measured on 101 rows."""
    return Moments(rows=101, mean=mean, scatter=covariance * 100)


def spread(width: int, seed: int) -> NDArray[np.float64]:
    root = np.random.default_rng(seed).normal(size=(width, width))
    return root @ root.T + 0.1 * np.eye(width)


def test_frechet_distance_of_known_gaussians() -> None:
    """One dimension: (m1 - m2)^2 + (s1 - s2)^2; with covariances that commute the same holds per axis."""
    narrow, wide = gaussian(np.array([1.0]), np.array([[4.0]])), gaussian(np.array([4.0]), np.array([[9.0]]))
    assert frechet_distance(narrow, wide) == pytest.approx(9 + 1)
    first, second = np.diag([1.0, 4.0, 9.0]), np.diag([16.0, 25.0, 0.0])
    assert frechet_distance(gaussian(np.zeros(3), first), gaussian(np.ones(3), second)) == pytest.approx(3 + 9 + 9 + 9)
    turned, _ = np.linalg.qr(RANDOM.normal(size=(3, 3)))
    moved = [gaussian(turned @ m, turned @ c @ turned.T) for m, c in ((np.zeros(3), first), (np.ones(3), second))]
    assert frechet_distance(*moved) == pytest.approx(30)


def test_frechet_distance_is_that_of_scipy_root() -> None:
    a, b = spread(12, 1), spread(12, 2)
    means = RANDOM.normal(size=(2, 12))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(gaussian(means[0], a), gaussian(means[1], b)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(gaussian(means[0], a), gaussian(means[0], a)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_features_is_that_of_the_original_formula() -> None:
    x, y = RANDOM.normal(size=(50, 6)), RANDOM.normal(size=(70, 6)) * 2 + 1
    root = sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-10)


def test_fid_of_too_few_images_is_refused_with_both_numbers() -> None:
    check_rows("images in de", 2049, 2048)
    with pytest.raises(AltDiffusionError, match=r"images in de: has 2,048 images.*2,048 features"):
        check_rows("images in de", 2048, 2048)
    with pytest.raises(ValueError, match="cannot compare"):
        frechet_distance(Moments.of(np.ones((1, 2))), Moments.of(np.ones((3, 2))))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 2**16), shift=st.floats(-1e4, 1e4))
def test_moments_of_any_pieces_in_any_order_are_those_of_the_whole(cuts: list[int], seed: int, shift: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(40, 5)) + shift
    pieces = np.split(rows, sorted(cuts))
    np.random.default_rng(seed).shuffle(pieces)  # type: ignore[arg-type]
    merged = Moments.empty(5)
    for piece in pieces:
        merged = merged.merged(Moments.of(piece))
    assert merged.rows == 40
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(merged.covariance, np.cov(rows, rowvar=False), rtol=1e-7, atol=1e-7)


def test_kid_is_the_double_loop() -> None:
    x, y = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(9, 4)) + 0.5
    k = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    within_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(k(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    between = sum(k(a, b) for a in x for b in y) / 63
    assert kernels.unbiased_mmd2(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_kid_of_one_distribution_is_zero_within_its_interval_and_of_two_is_not() -> None:
    x, same, other = (RANDOM.normal(size=(2000, 8)) + shift for shift in (0.0, 0.0, 0.5))
    near = estimate.of_parts(kernels.kid_blocks(x, same, 100), 2000)
    far = estimate.of_parts(kernels.kid_blocks(x, other, 100), 2000)
    assert near.low is not None and near.high is not None and near.low < 0 < near.high
    assert far.low is not None and far.low > 0.1
    assert len(kernels.kid_blocks(x, same[:250], 100)) == 2 and len(kernels.kid_blocks(x[:50], same, 100)) == 1
    np.testing.assert_array_equal(kernels.kid_blocks(x, same, 100), kernels.kid_blocks(x, same, 100))


def test_cmmd_is_the_double_loop_and_its_jackknife_leaves_rows_out() -> None:
    x, y = RANDOM.normal(size=(41, 3)), RANDOM.normal(size=(50, 3)) * 2

    def loop(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        k = lambda a, b: math.exp(-((a - b) ** 2).sum() / 200)  # noqa: E731
        mean = lambda p, q: sum(k(a, b) for a in p for b in q) / (len(p) * len(q))  # noqa: E731
        return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))

    value, without = kernels.cmmd(x, y)
    assert value == pytest.approx(loop(x, y), rel=1e-9) and without.shape == (20,)
    left = [z[np.arange(len(z)) % 20 != 3] for z in (x, y)]
    assert without[3] == pytest.approx(loop(*left), rel=1e-9)
    assert kernels.cmmd(x, x)[0] == pytest.approx(0, abs=1e-9)
    assert kernels.cmmd(x[:3], y)[1].shape == (0,)


def test_cmmd_of_two_points_is_the_closed_form() -> None:
    """Sets of one point at distance d: 2000 (1 - exp(-d^2 / 200))."""
    value, _ = kernels.cmmd(np.zeros((1, 2)), np.array([[3.0, 4.0]]))
    assert value == pytest.approx(2000 * (1 - math.exp(-25 / 200)), rel=1e-12)


def test_inception_score_of_known_answers() -> None:
    split = np.arange(30) % 3
    uniform = np.full((30, 5), 0.2)
    np.testing.assert_allclose(ClassSums.of(uniform, split, 3).scores(), 1.0)
    certain = np.eye(5)[np.arange(30) // 3 % 5]  # each split has every class twice
    np.testing.assert_allclose(ClassSums.of(certain, split, 3).scores(), 5.0)
    np.testing.assert_allclose(ClassSums.of(np.eye(5)[np.zeros(30, int)], split, 3).scores(), 1.0)


def test_inception_score_is_the_mean_divergence_and_merges() -> None:
    p = RANDOM.dirichlet(np.ones(6), 40)
    split = RANDOM.integers(0, 2, 40)
    expected = [math.exp(np.mean([stats.entropy(row, p[split == s].mean(0)) for row in p[split == s]])) for s in (0, 1)]
    whole = ClassSums.of(p, split, 2)
    np.testing.assert_allclose(whole.scores(), expected, rtol=1e-12)
    parts = ClassSums.of(p[25:], split[25:], 2).merged(ClassSums.of(p[:25], split[:25], 2))
    np.testing.assert_allclose(parts.scores(), expected, rtol=1e-12)


def test_cosines_and_ranks() -> None:
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    images = np.array([[0.8, 0.6], [1.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(text_fit.cosines(images, texts), [0.8, 0.0, 1.0])
    assert text_fit.ranks(texts, images).tolist() == [2, 3, 1]
    assert text_fit.ranks(texts, np.ones((3, 2))).tolist() == [3, 3, 3], "ties are not success"


def test_intervals_of_shares_are_wilsons() -> None:
    """The values for 128 of 128 and for 0 of 10 are z^2-closed forms: n / (n + z^2), z^2 / (n + z^2)."""
    z2 = stats.norm.ppf(0.975) ** 2
    whole, none = estimate.of_share(1.0, 128, 128), estimate.of_share(0.0, 10, 10)
    assert whole.low == pytest.approx(128 / (128 + z2)) and whole.high == 1.0
    assert none.high == pytest.approx(z2 / (10 + z2)) and none.low == 0.0


def test_intervals_cover_what_they_state() -> None:
    """About 95 % of the intervals of 300 samples hold the true value; bounds are four standard deviations away."""
    random = np.random.default_rng(3)
    held = {"parts": 0, "groups": 0, "jackknife": 0}
    for seed in range(300):
        rows = random.normal(size=60)
        blocks = rows.reshape(12, 5).mean(1)
        left = np.array([np.delete(rows.reshape(12, 5), g, 0).mean() for g in range(12)])
        found = {
            "parts": estimate.of_parts(blocks, 60),
            "groups": estimate.of_groups(rows, [str(i) for i in range(60)], seed=seed),
            "jackknife": estimate.of_jackknife(rows.mean(), left, 60),
        }
        for name, one in found.items():
            assert one.low is not None and one.high is not None
            held[name] += one.low <= 0 <= one.high
    assert all(0.90 <= count / 300 <= 1.0 for count in held.values()), held


def test_a_single_part_has_no_interval() -> None:
    assert estimate.of_parts(np.array([2.0]), 9).low is None
    assert estimate.of_groups(np.array([1.0, 2.0]), ["a", "a"]).low is None
    assert estimate.of_jackknife(1.0, np.empty(0), 3).low is None
