"""How much more likely a word is in one language than in another: evidence from lists of frequent words.

A short caption has few n-grams, but its words are mostly frequent ones, and a list shows in which languages a word is
frequent at all. Lists are wordfreq's (Speer, doi 10.5281/zenodo.7199437; data under CC-BY-SA 4.0): words that occur at
least once in a million, with their frequency in centibels. Only those bytes of the package are used, none of its code.

Shapes: W words, C lists.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from altdiffusion.curation.language.caption_words import Words, WordTable, words_of
from altdiffusion.curation.language.ideographs import Ideographs
from altdiffusion.curation.language.markers import MARKERS
from altdiffusion.diffusion.pinned_files import resolve_uri
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

# Lists of languages whose script does not name them, in the order of the evidence's columns.
LISTS: tuple[str, ...] = (
    "ar", "bg", "ca", "cs", "da", "de", "en", "es", "fa", "fi", "fil", "fr", "hi", "hu", "id", "is", "it", "lt", "lv",
    "mk", "ms", "nb", "nl", "pl", "pt", "ro", "ru", "sh", "sk", "sl", "sv", "tr", "uk", "ur", "vi",
)  # fmt: skip
_IDEOGRAPHS = ("zh", "ja")
"""Lists of languages that are distinguished by their ideographs (`ideographs`), not by their words."""
# Lists of labels that go by another name, or that share a list.
_SHARED = {"no": "nb", "nn": "nb", "tl": "fil", "sh": "sh", "hr": "sh", "bs": "sh", "sr": "sh"}
# Labels without a list, by the lists of the languages nearest to them: most of their words look like those.
_NEAREST: dict[tuple[str, ...], str] = {
    ("nl",): "af fy li vls nds", ("de",): "als bar lb frr", ("pt", "es"): "gl mwl", ("es",): "ast an",
    ("ca", "fr"): "oc", ("it",): "co scn lmo pms nap vec sc rm eml", ("fr",): "wa ht", ("ar",): "arz",
    ("fa",): "glk mzn azb", ("ur",): "pnb", ("hi",): "mr ne new dty bh gom sa mai", ("tr",): "az tk",
    ("ru", "uk"): "be rue", ("da", "is"): "fo", ("en",): "sco", ("id",): "jv su min",
    ("fil",): "ceb war bcl pam ilo", ("cs", "pl"): "hsb dsb",
}  # fmt: skip
_JOINED = tuple(names for names in _NEAREST if len(names) > 1)
_MARKED = tuple(MARKERS)
_FIRST_MARKED = len(LISTS) + len(_JOINED)
COLUMNS = _FIRST_MARKED + len(_MARKED) + 2
BEST, UNLISTED = COLUMNS - 2, COLUMNS - 1
FLOOR = 700
"""Centibels below certainty: the frequency, 1e-7, that a word not on a list is given."""
UNIT = 4
"""Centibels; gains are whole numbers of this unit."""
_LETTERS = re.compile(r"[^\x00-@\[-`{-\xbf\u2010-\u2bff]+")  # no digit, apostrophe or other sign: `scripts` cuts there
_LANE, _PER_LANE = 21, 3  # bits of a sum; sums in one int64


def own_list(label: str, latin: bool) -> int | None:
    """Return the column of a label's own list, for captions in Latin letters or in others."""
    if label == "sr" and not latin:
        return None  # the shared list of Serbo-Croatian is in Latin letters
    name = _SHARED.get(label, label)
    return LISTS.index(name) if name in LISTS else None


def nearest(label: str) -> int | None:
    """Return the column of the lists nearest to a label that has none."""
    for names, labels in _NEAREST.items():
        if label in labels.split():
            return LISTS.index(names[0]) if len(names) == 1 else len(LISTS) + _JOINED.index(names)
    return None


def marked(label: str) -> int | None:
    """Return the column that counts words of the group of a label without a list (`markers`)."""
    for names, labels in _NEAREST.items():
        if label in labels.split() and names in MARKERS:
            return _FIRST_MARKED + _MARKED.index(names)
    return None


class WordLists:
    """All lists together."""

    def __init__(self, uri: str, sha256: str) -> None:
        """Read the lists.

        Args:
            uri: of each list, with `{language}` in it.
            sha256: hex, of the lines `<sha256 of a list>  <its language>`, in the order of `LISTS`, then zh and ja.

        Raises:
            AltDiffusionError: a list is missing, or they are not the pinned ones.
        """
        names = LISTS + _IDEOGRAPHS
        data = [_read(uri.replace("{language}", language)) for language in names]
        lines = "".join(f"{files.sha256_hex(d)}  {language}\n" for d, language in zip(data, names, strict=True))
        actual = files.sha256_hex(lines.encode())
        if actual != sha256:
            raise AltDiffusionError(
                f"word lists {uri}", f"have SHA-256 {actual}, not {sha256}", "use the pinned lists, or pin the new ones"
            )
        hashes, columns, gains = [], [], []
        self.ideographs = Ideographs(*(_levels(raw) for raw in data[len(LISTS) :]))
        for column, raw in enumerate(data[: len(LISTS)]):
            levels = _levels(raw)
            letters = [[word for word in words if _LETTERS.fullmatch(word)] for words in levels]
            hashes.append(words_of([word for words in letters for word in words]).hashes())
            columns.append(np.full(len(hashes[-1]), column, np.uint8))
            gain = np.maximum(FLOOR - np.arange(len(levels)), 0) // UNIT
            gains.append(np.repeat(gain.astype(np.uint8), [len(words) for words in letters]))
        different, entry = np.unique(np.concatenate(hashes), return_inverse=True)
        order = np.argsort(entry, kind="stable")
        self._column, self._gain = np.concatenate(columns)[order], np.concatenate(gains)[order]
        self._first = np.searchsorted(entry[order], np.arange(len(different) + 1)).astype(np.int32)
        self._table = WordTable(different)
        markers = sorted({word for words in MARKERS.values() for word in words.split()})
        self._markers = WordTable(words_of(markers).hashes(), bits=13)
        self._marks = np.array([[word in words.split() for word in markers] for words in MARKERS.values()], np.uint8)

    def gains(self, words: Words, judged: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Return what each word adds, [COLUMNS, W], in `UNIT`s.

        One row per list: how much more likely the word is in that language than one that is on no list; the most that
        any of some lists gives, for labels that are near to several; for each group of labels 1 if the word is one of
        its markers; then `BEST` (the most that any list gives) and `UNLISTED` (1 if no list has the word, though it is
        one of `judged`).
        """
        hashes = words.hashes()
        number = self._table.find(hashes)
        gained = np.zeros((COLUMNS, len(number)), np.uint8)
        known = np.flatnonzero(number >= 0)
        first = self._first[number[known]]
        count = self._first[number[known] + 1] - first
        word = np.repeat(known, count)
        at = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(word))
        gained[self._column[at], word] = self._gain[at]
        for row, names in enumerate(_JOINED, len(LISTS)):
            np.maximum.reduce([gained[LISTS.index(name)] for name in names], out=gained[row])
        marker = self._markers.find(hashes)
        marking = np.flatnonzero(marker >= 0)
        gained[_FIRST_MARKED : _FIRST_MARKED + len(_MARKED), marking] = self._marks[:, marker[marking]]
        gained[: len(LISTS)].max(axis=0, out=gained[BEST])
        gained[UNLISTED] = judged & (number < 0)
        return gained


def pack(gains: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return columns [COLUMNS, W] packed as [lanes, W]: three per lane, so that sums over 4,096 letters cannot meet."""
    packed = np.zeros((-(-len(gains) // _PER_LANE), gains.shape[1]), np.int64)
    for column, values in enumerate(gains):
        lane, shift = packed[column // _PER_LANE], _LANE * (column % _PER_LANE)
        if _FIRST_MARKED <= column < BEST:  # few words are markers
            lane[np.flatnonzero(values.view(bool))] += 1 << shift
        else:
            lane += values.astype(np.int64) << shift
    return packed


def unpack(lanes: npt.NDArray[np.int64], columns: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """Return the sums of some columns, each [T]."""
    mask = (1 << _LANE) - 1
    return [
        ((lanes[column // _PER_LANE] >> (_LANE * (column % _PER_LANE))) & mask).astype(np.float32) for column in columns
    ]


def _levels(raw: bytes) -> list[list[str]]:
    """Return the words by level: those at number n have frequency 10^(-n / 100)."""
    levels: list[list[str]] = msgpack.unpackb(gzip.decompress(raw), raw=False)[1:]
    return levels


def _read(uri: str) -> bytes:
    try:
        return files.read_bytes(resolve_uri(uri))
    except FileNotFoundError as error:
        raise AltDiffusionError(
            f"word list {uri}",
            "is not there",
            "check language.words; language.words_sha256: null does without, at a cost in recall",
        ) from error
