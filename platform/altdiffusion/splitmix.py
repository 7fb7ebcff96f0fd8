"""SplitMix64: a bijection of 64-bit words that changes about half of the bits; the same on every machine.

Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014, with David Stafford's mixing
constants, variant 13. Not cryptographic: it spreads keys and decides draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""What the generator's state grows by: 2**64 divided by the golden ratio."""
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
"""The multipliers of `mix`."""


def mix(words: Words) -> Words:
    """Return the finaliser of each word, uint64 of the same shape: every input bit moves every output bit."""
    mixed = (words ^ (words >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    return mixed ^ (mixed >> np.uint64(31))


def splitmix64(states: Words) -> Words:
    """Return the generator's output for each state, uint64 of the same shape."""
    return mix(states + GAMMA)
