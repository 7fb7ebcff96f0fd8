"""Chinese or Japanese, where a text has ideographs only and the national standards hold all of them.

Japanese mostly has kana and Chinese mostly an ideograph that only one standard holds, so such texts are short: names of
things. What is left to go by is which ideographs, and which pairs of them, each language's frequent words are made
of: wordfreq's lists of both (`word_lists`), and that a Japanese text without kana is the rarer thing. Traditional
Chinese is missing in these lists, so that an ideograph that GB 2312 lacks proves little: Japanese if the pair it is in
is Japanese, Chinese if it is one of those that JIS X 0208 has from before 1946 and Japanese no longer uses.

Shapes: T captions, P code points of all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.language.caption_words import code_points

_FIRST, _LAST = 0x4E00, 0x9FFF
_UNIT = 64
"""Steps of a nat: sums are whole numbers, whatever the order."""
_SINGLE, _PAIR = 1e-5, 3e-6
"""Shares of a list's ideographs, and of its pairs, that one on no list is given."""
_MOST, _MOST_PAIR = 4.0, 3.0  # nats that one of them may add
_MOST_OUTSIDE = 1.0  # ... that a pair may add that the Chinese list cannot have


@dataclass(frozen=True, kw_only=True)
class _Odds:
    """Weights of the evidence, in nats for Chinese; fitted on names that CLDR has in both languages, every other one
    (logistic regression), and rounded."""

    single: float = 0.4
    pair: float = 1.2
    each: float = 0.6
    """Added per ideograph that both standards hold: in Japanese it could have been kana."""
    old: float = 2.5
    """Added per ideograph that JIS X 0208 and Big5 hold, GB 2312 does not, and no frequent Japanese word has."""
    start: float = -1.0


class Ideographs:
    """Two lists of frequent words, as their ideographs."""

    def __init__(self, chinese: Sequence[Sequence[str]], japanese: Sequence[Sequence[str]]) -> None:
        """Count.

        Args:
            chinese: words by level: those at number n have frequency 10^(-n / 100).
            japanese: the same.
        """
        singles, pairs = zip(_shares(chinese), _shares(japanese), strict=True)
        points = np.arange(_FIRST, _LAST + 1)
        gb, jis = (np.array([_holds(chr(point), name) for point in points]) for name in ("gb2312", "shift_jis"))
        self._shared = gb & jis
        zh, ja = (np.array([share.get(chr(point), 0.0) for point in points]) for share in singles)
        self._single = np.where(self._shared, _units(zh, ja, _SINGLE, _MOST), 0)
        self._old = jis & ~gb & (ja == 0)
        self._known = np.sort(np.array([_pair(*map(ord, text)) for text in {*pairs[0], *pairs[1]}], np.int64))
        texts = [chr(pair >> 16) + chr(pair & 0xFFFF) for pair in self._known.tolist()]
        zh, ja = (np.array([share.get(text, 0.0) for text in texts]) for share in pairs)
        self._pairs = _units(zh, ja, _PAIR, _MOST_PAIR)

    def odds(self, captions: pa.StringArray) -> npt.NDArray[np.float64]:
        """Return log (P(Chinese) / P(Japanese)), [T]; none of the captions is empty."""
        weights = _Odds()
        points, begin = code_points(captions)
        ideograph = (points >= _FIRST) & (points <= _LAST)
        place = np.where(ideograph, points, _FIRST).astype(np.intp) - _FIRST
        shared = ideograph & self._shared[place]
        single = np.where(ideograph, self._single[place], 0)
        pair = np.zeros(len(points), np.int64)
        inner = np.flatnonzero(ideograph[:-1] & ideograph[1:])
        inner = inner[~np.isin(inner + 1, begin)]
        key = _pair(points[inner].astype(np.int64), points[inner + 1].astype(np.int64))
        at = np.minimum(np.searchsorted(self._known, key), len(self._known) - 1)
        known = np.where(self._known[at] == key, self._pairs[at], 0)
        outside = np.clip(known, -round(_MOST_OUTSIDE * _UNIT), 0)
        pair[inner] = np.where(shared[inner] & shared[inner + 1], known, outside)
        evidence = (
            (weights.single / _UNIT, single),
            (weights.pair / _UNIT, pair),
            (weights.each, shared.astype(np.int64)),
            (weights.old, (ideograph & self._old[place]).astype(np.int64)),
        )
        total = np.full(len(captions), weights.start)
        for weight, values in evidence:
            total += weight * np.add.reduceat(values, begin)
        return total


def _shares(levels: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the ideographs and pairs of neighbours by their share of all in a list; frequent words count more."""
    singles: dict[str, float] = {}
    pairs: dict[str, float] = {}
    for level, words in enumerate(levels):
        frequency = 10 ** (-level / 100)
        for word in words:
            here = [_FIRST <= ord(character) <= _LAST for character in word]
            for at, character in enumerate(word):
                if here[at]:
                    singles[character] = singles.get(character, 0.0) + frequency
                    if at and here[at - 1]:
                        text = word[at - 1 : at + 1]
                        pairs[text] = pairs.get(text, 0.0) + frequency
    return _normalised(singles), _normalised(pairs)


def _normalised(counts: dict[str, float]) -> dict[str, float]:
    total = sum(counts.values())
    return {text: count / total for text, count in counts.items()}


def _units(
    zh: npt.NDArray[np.float64], ja: npt.NDArray[np.float64], least: float, most: float
) -> npt.NDArray[np.int64]:  # fmt: skip
    nats = np.clip(np.log((zh + least) / (ja + least)), -most, most)
    return np.asarray(np.rint(nats * _UNIT), np.int64)


def _pair(first: npt.NDArray[np.int64] | int, second: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    return np.asarray(first, np.int64) << 16 | np.asarray(second, np.int64)


def _holds(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
