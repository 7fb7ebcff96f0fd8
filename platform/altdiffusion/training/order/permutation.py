"""Keyed permutations of 0 .. n - 1 that are computed point by point, never materialised.

An unbalanced Feistel network permutes the smallest power of two that is not below n; values outside the range are
mapped again until they fall inside (Black and Rogaway: "Ciphers with arbitrary finite domains", 2002). The domain is
smaller than 2 n, so a walk takes two steps on average. Every argument may be an array: each element may have its
own n and its own key.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from altdiffusion.splitmix import GAMMA, mix

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

ROUNDS = 8


def key_of(*parts: object) -> np.uint64:
    """Return a 64-bit key of any values: the first 64 bits of the SHA-256 of their texts."""
    text = "\x1f".join(str(part) for part in parts)
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def derive(key: U64 | np.uint64, number: I64 | U64) -> U64:
    """Return an independent key for each number (epoch, window, block) under a key."""
    with np.errstate(over="ignore"):
        return mix(mix(np.asarray(number).astype(np.uint64) * GAMMA + key) ^ key)


def permute(x: I64, n: I64 | int, key: U64 | np.uint64, *, inverse: bool = False) -> I64:
    """Return where a keyed permutation of 0 .. n - 1 sends x.

    Args:
        x: int64 [K], each 0 <= x < n.
        n: int64 [K] or one int, at most 2**62.
        key: uint64 [K] or one key.
        inverse: return the value that is sent to x instead.

    Returns:
        int64 [K].
    """
    value = np.asarray(x, dtype=np.int64)
    size = np.broadcast_to(np.asarray(n, dtype=np.int64), value.shape)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), value.shape)
    if value.size and (value.min() < 0 or (value >= size).any()):
        raise ValueError("a value to permute is outside its range")
    bits = _bit_length(size - 1)
    low_bits = bits - bits // np.uint64(2)
    out = _network(value.astype(np.uint64), bits, low_bits, keys, inverse)
    outside = np.flatnonzero(out >= size.astype(np.uint64))
    while outside.size:
        out[outside] = _network(out[outside], bits[outside], low_bits[outside], keys[outside], inverse)
        outside = outside[out[outside] >= size[outside].astype(np.uint64)]
    return out.astype(np.int64)


def _network(x: U64, bits: U64, low_bits: U64, key: U64, inverse: bool) -> U64:
    """Apply the Feistel rounds once: a permutation of 0 .. 2**bits - 1."""
    one = np.uint64(1)
    low_mask = (one << low_bits) - one
    high_mask = (one << (bits - low_bits)) - one
    high, low = x >> low_bits, x & low_mask
    with np.errstate(over="ignore"):
        for number in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            round_key = key + np.uint64(number + 1) * GAMMA
            if number % 2 == 0:
                high = high ^ (mix(low ^ mix(round_key)) & high_mask)
            else:
                low = low ^ (mix(high ^ mix(round_key)) & low_mask)
    return (high << low_bits) | low


def _bit_length(x: I64) -> U64:
    """Return the number of bits of each value, as int.bit_length does."""
    length = np.zeros(x.shape, dtype=np.uint64)
    rest = x.astype(np.uint64)
    for step in (32, 16, 8, 4, 2, 1):
        big = rest >= (np.uint64(1) << np.uint64(step))
        length[big] += np.uint64(step)
        rest = np.where(big, rest >> np.uint64(step), rest)
    length[rest > 0] += np.uint64(1)
    return length
