"""FID, KID and resizing against clean-fid, where it is installed (it needs torchvision)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from altdiffusion.evaluation.measures.frechet import frechet_distance
from altdiffusion.evaluation.measures.kernels import unbiased_mmd2
from altdiffusion.evaluation.measures.moments import Moments
from altdiffusion.evaluation.measures.resize import Resize, resized

RANDOM = np.random.default_rng(0)


def test_distances_are_those_of_clean_fid() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    x, y = RANDOM.normal(size=(200, 16)), RANDOM.normal(size=(200, 16)) + 0.3
    expected = fid.frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-6)
    expected = fid.kernel_distance(x, y, num_subsets=1, max_subset_size=200)
    assert unbiased_mmd2(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("way", "mode"), [("clean", "clean"), ("torch-bilinear", "legacy_pytorch")])
def test_resizing_is_that_of_clean_fid(way: Resize, mode: str) -> None:
    resize = pytest.importorskip("cleanfid.resize")
    values = RANDOM.integers(0, 256, (61, 83, 3), np.uint8)
    expected = resize.build_resizer(mode)(values).clip(0, 255).transpose(2, 0, 1)
    np.testing.assert_allclose(resized(Image.fromarray(values), 299, way), expected, atol=1e-3)
