"""Counter-based random numbers: the value of a sample depends on its key alone.

Every draw is a pure function of (seed, sample index, stream). So a sample gets the same noise, timestep and caption
drop in every batch, on every rank and after every restart, and there is no generator state to store or restore.

Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
reference implementation Random123). One block of 128 bits has the key (seed low, seed high) and the counter (block
number within the sample, stream, sample index low, sample index high), each 32 bits wide. The words are bit-equal on
every device.

Normal numbers are computed from the words in float64 (Box-Muller) and rounded to float32. So devices whose log, sine
and cosine differ in the last place of float64 still agree in float32, except for about one value in 1e8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NOISE = 0
"""Stream of the noise that is added to a latent."""
TIMESTEP = 1
"""Stream of the timestep."""
CAPTION_DROP = 2
"""Stream of the decision whether a caption is replaced by the empty one."""
INITIAL_NOISE = 3
"""Stream of the noise from which an image is generated."""
CROP = 4
"""Stream of a random crop."""
QUERY = 5
"""Stream of the queries that compare two texts (diffusion.readout)."""
MIRROR = 6
"""Stream of the decision whether an image is mirrored."""
NOISE_OFFSET = 7
"""Stream of the offsets that are added to the noise of a latent's channels."""
LATENT_SAMPLE = 16
"""Stream of the noise in a sampled latent."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ten rounds of Philox on 32-bit words in int64 tensors.

    Args:
        counter: four int64 tensors that broadcast against each other, values 0 to 2**32 - 1.
        key: two ints, 0 to 2**32 - 1.

    Returns:
        Four int64 tensors of the broadcast shape, values 0 to 2**32 - 1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product fits 64 bits. In int64 it may be negative, but its bits are those of the unsigned one.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) & _MASK) ^ c1 ^ k0,
            high & _MASK,
            ((low >> 32) & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    return c0.expand(shape), c1.expand(shape), c2.expand(shape), c3.expand(shape)


def keyed_words(seed: int, sample_indices: Tensor, stream: int, count: int) -> Tensor:
    """Return random 32-bit words, `count` for each sample.

    Args:
        seed: any int; its lowest 64 bits are used.
        sample_indices: int64 [B] on any device; negative values are valid keys.
        stream: the number of one of several independent draws for the same sample, 0 to 2**32 - 1.
        count: words per sample.

    Returns:
        int64 [B, count] on the device of `sample_indices`, values 0 to 2**32 - 1.
    """
    if sample_indices.dtype != torch.int64 or sample_indices.dim() != 1:
        raise TypeError(f"sample_indices must be int64 [B], not {sample_indices.dtype} {tuple(sample_indices.shape)}")
    device = sample_indices.device
    blocks = -(-count // 4)
    index = sample_indices.unsqueeze(1)
    words = philox4x32(
        (
            torch.arange(blocks, dtype=torch.int64, device=device).unsqueeze(0),
            torch.full((1, 1), stream & _MASK, dtype=torch.int64, device=device),
            index & _MASK,
            (index >> 32) & _MASK,
        ),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    return torch.stack(words, dim=-1).reshape(sample_indices.shape[0], blocks * 4)[:, :count]


def keyed_uniform(seed: int, sample_indices: Tensor, stream: int, shape: Sequence[int] = ()) -> Tensor:
    """Return uniform numbers in [0, 1) with 24 random bits: float32 [B, *shape]."""
    words = keyed_words(seed, sample_indices, stream, math.prod(shape))
    return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(sample_indices.shape[0], *shape)


def keyed_normal(seed: int, sample_indices: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers by Box-Muller: float32 [B, *shape].

    Words 2i and 2i + 1 give numbers 2i and 2i + 1: with u = (word + 1/2) / 2**32, they are
    sqrt(-2 ln u0) cos(2 pi u1) and sqrt(-2 ln u0) sin(2 pi u1). The largest magnitude is 6.77.
    """
    count = math.prod(shape)
    words = keyed_words(seed, sample_indices, stream, count + count % 2)
    uniform = words.to(torch.float64).add_(0.5).mul_(2.0**-32)
    radius = uniform[:, 0::2].log().mul_(-2.0).sqrt_()
    angle = uniform[:, 1::2] * (2.0 * math.pi)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).to(torch.float32)
    samples = sample_indices.shape[0]
    return pairs.reshape(samples, count + count % 2)[:, :count].reshape(samples, *shape)


def keyed_timesteps(seed: int, sample_indices: Tensor, steps: int, stream: int = TIMESTEP) -> Tensor:
    """Return integers from 0 to steps - 1, uniform to within steps / 2**32: int64 [B]."""
    return ((keyed_words(seed, sample_indices, stream, 1) * steps) >> 32).squeeze(1)
