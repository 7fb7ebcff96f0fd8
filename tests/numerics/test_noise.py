"""Philox against Random123's published vectors, and what keyed draws promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.diffusion import noise

# Random123 1.14, tests/kat_vectors, lines "philox4x32 10": counter, key, expected.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = noise.philox4x32([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in words) == expected


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Return the definition in Python's unbounded ints."""
    mask = 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(p1 >> 32) ^ counter[1] ^ key[0], p1 & mask, (p0 >> 32) ^ counter[3] ^ key[1], p0 & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    index=st.integers(-(2**63), 2**63 - 1),
    stream=st.integers(0, 2**32 - 1),
)
def test_words_are_philox_of_seed_index_stream(seed: int, index: int, stream: int) -> None:
    words = noise.keyed_words(seed, torch.tensor([index]), stream, 7)[0].tolist()
    mask = 0xFFFFFFFF
    expected = []
    for block in range(2):
        counter = [block, stream, index & mask, (index >> 32) & mask]
        expected += philox_by_hand(counter, [seed & mask, (seed >> 32) & mask])
    assert words == expected[:7]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_sample_is_independent_of_its_batch(data: st.DataObject) -> None:
    indices = torch.tensor(data.draw(st.lists(st.integers(0, 2**62), min_size=1, max_size=17, unique=True)))
    shape = data.draw(st.sampled_from([(3,), (4, 5, 5), (16, 8, 8)]))
    normal = noise.keyed_normal(11, indices, noise.NOISE, shape)
    uniform = noise.keyed_uniform(11, indices, noise.CAPTION_DROP)
    steps = noise.keyed_timesteps(11, indices, 1000)
    assert normal.shape == (len(indices), *shape)
    for row in range(len(indices)):
        alone = indices[row : row + 1]
        assert torch.equal(normal[row], noise.keyed_normal(11, alone, noise.NOISE, shape)[0])
        assert torch.equal(uniform[row], noise.keyed_uniform(11, alone, noise.CAPTION_DROP)[0])
        assert torch.equal(steps[row], noise.keyed_timesteps(11, alone, 1000)[0])


def test_prefix_does_not_depend_on_the_shape() -> None:
    indices = torch.arange(5)
    long = noise.keyed_normal(3, indices, 0, (64,))
    assert torch.equal(long[:, :10], noise.keyed_normal(3, indices, 0, (10,)))


@pytest.mark.parametrize("change", ["seed", "stream", "index"])
def test_every_part_of_the_key_counts(change: str) -> None:
    indices = torch.arange(64)
    base = noise.keyed_normal(1, indices, 0, (64,)).flatten()
    other = {
        "seed": noise.keyed_normal(1 + 2**32, indices, 0, (64,)),
        "stream": noise.keyed_normal(1, indices, 1, (64,)),
        "index": noise.keyed_normal(1, indices + 2**32, 0, (64,)),
    }[change].flatten()
    correlation = float((base * other).mean())
    assert abs(correlation) < 5 / math.sqrt(base.numel())


def test_normal_has_the_normal_distribution() -> None:
    values = noise.keyed_normal(5, torch.arange(1000), noise.NOISE, (400,)).double().flatten()
    n = values.numel()
    assert abs(float(values.mean())) < 5 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 5 * math.sqrt(2 / n)
    ordered = values.sort().values
    cdf = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    empirical = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((cdf - empirical).abs().max()) < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 %
    assert bool(values.isfinite().all())


def test_neighbouring_numbers_are_independent() -> None:
    values = noise.keyed_normal(6, torch.arange(2000), noise.NOISE, (128,)).double()
    for lag in (1, 2, 3, 4):
        products = values[:, lag:] * values[:, :-lag]
        assert abs(float(products.mean())) < 5 / math.sqrt(products.numel())
    rows = values[1:] * values[:-1]
    assert abs(float(rows.mean())) < 5 / math.sqrt(rows.numel())
    squares = (values[:, 1::2] ** 2 - 1) * (values[:, 0::2] ** 2 - 1)  # the two numbers of one pair
    assert abs(float(squares.mean())) < 5 * 2 / math.sqrt(squares.numel())


def test_timesteps_and_uniform_cover_their_range_evenly() -> None:
    indices = torch.arange(200_000)
    steps = noise.keyed_timesteps(9, indices, 1000)
    counts = torch.bincount(steps, minlength=1000).double()
    assert counts.numel() == 1000
    chi_square = float(((counts - 200) ** 2 / 200).sum())
    assert abs(chi_square - 999) < 5 * math.sqrt(2 * 999)
    uniform = noise.keyed_uniform(9, indices, noise.CAPTION_DROP)
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    share = float((uniform < 0.1).double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / 200_000)


def test_wrong_index_type_is_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        noise.keyed_words(0, torch.arange(3, dtype=torch.int32), 0, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_device_does_not_matter() -> None:
    indices = torch.arange(1000) * 7_919_000_001
    assert torch.equal(noise.keyed_words(4, indices, 0, 256), noise.keyed_words(4, indices.cuda(), 0, 256).cpu())
    here = noise.keyed_normal(4, indices, 0, (256,))
    there = noise.keyed_normal(4, indices.cuda(), 0, (256,)).cpu()
    assert float((here != there).double().mean()) < 1e-5
