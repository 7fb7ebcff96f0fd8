"""Pairs of 64-bit hashes that differ in few bits, without comparing all with all.

A hash is cut into distance + 1 bands. Two hashes that differ in at most `distance` bits agree in at least one whole
band: each differing bit spoils one band, and there is one band more than such bits. So every pair within the distance
meets in the group of a band they share, and comparing within groups finds all of them. This is the pigeonhole
argument of multi-index hashing (Norouzi, Punjani, Fleet: Fast Search in Hamming Space with Multi-Index Hashing,
CVPR 2012). A large group is cut again by the same argument, over the bits outside its band.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

BITS = 64
LARGE = 64
"""Groups of more rows are cut again; below, comparing all pairs costs less."""

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def bands(bits: int, distance: int) -> list[tuple[int, int]]:
    """Return (offset, width) of distance + 1 bands that cover `bits` bits as evenly as possible; some may be 0 wide."""
    edges = [bits * part // (distance + 1) for part in range(distance + 2)]
    return [(low, high - low) for low, high in pairwise(edges)]


def cut(hashes: Hashes, band: tuple[int, int]) -> Hashes:
    """Return the bits of a band, as numbers from 0."""
    offset, width = band
    if width == BITS:
        return hashes
    return (hashes >> np.uint64(offset)) & np.uint64((1 << width) - 1)


def outside(hashes: Hashes, band: tuple[int, int]) -> Hashes:
    """Return the other 64 - width bits, pushed together."""
    offset, width = band
    low = cut(hashes, (0, offset))
    return low if offset + width == BITS else (hashes >> np.uint64(offset + width) << np.uint64(offset)) | low


def groups(*values: npt.NDArray[np.generic]) -> tuple[Ints, Ints]:
    """Return rows in an order in which equal ones (in all `values`) are together, and the group number of each."""
    order = np.lexsort(values[::-1])
    new = np.zeros(len(order), bool)
    for value in values:
        new[1:] |= value[order[1:]] != value[order[:-1]]
    return order, np.cumsum(new)


def beaten(
    group: Ints, hashes: Hashes, bits: int, rank: Ints, name: Ints, distance: int
) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Find the rows that have a row of better rank within the distance, in their own group.

    Memory is a small multiple of the rows; work is the number of pairs that share a band within a group.

    Args:
        group: [n] only rows of one group are compared.
        hashes: [n] distinct within a group; the lowest `bits` bits count.
        rank: [n] distinct within a group; smaller is better.
        name: [n] the identity of a row.

    Returns:
        [n] whether the row is beaten, and [n] the smallest name among those that beat it (else the largest int64).
    """
    lost = np.zeros(len(group), bool)
    by = np.full(len(group), np.iinfo(np.int64).max)
    order, place = groups(group)
    large = np.bincount(place, minlength=1)[place] > LARGE
    _pairs(order[~large], place[~large], hashes, rank, name, distance, lost, by)
    rows, place = order[large], place[large]
    for band in bands(bits, distance) if len(rows) else ():
        within, part = groups(place, cut(hashes[rows], band))
        _pairs(rows[within], part, hashes, rank, name, distance, lost, by)
    return lost, by


def _pairs(
    rows: Ints,
    group: Ints,
    hashes: Hashes,
    rank: Ints,
    name: Ints,
    distance: int,
    lost: npt.NDArray[np.bool_],
    by: Ints,
) -> None:
    """Compare each row with the one before it in its group, then the one two before, and so on; mark the losers.

    Args:
        rows: [m] which rows, those of a group together.
        group: [m] their groups, ascending.
    """
    within = np.arange(len(group)) - np.searchsorted(group, group)
    at = np.flatnonzero(within)
    shift = 1
    while len(at):
        one, other = rows[at], rows[at - shift]
        close = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
        one, other = one[close], other[close]
        behind = rank[one] > rank[other]
        loser, winner = np.where(behind, one, other), np.where(behind, other, one)
        lost[loser] = True
        np.minimum.at(by, loser, name[winner])
        shift += 1
        at = at[within[at] >= shift]
