"""Which language a caption is in: letters first, then a model and word lists among what the letters leave open.

- Letters. A script of one language decides alone; an alphabet rules languages out; a text without letters is
  `unknown` (fastText would answer `en 0.12`).
- fastText's lid.176 (Joulin et al., arXiv 1607.01759; model under CC-BY-SA 3.0): the probabilities of all its labels,
  not the best one's. They come from a mean over n-grams, which is the same for five n-grams as for five hundred;
  so their logarithms are sharpened by a power of the number of n-grams (`Weights`).
- Word lists (`lid.word_lists`): in which languages the words are frequent.
- Their sum, renormalised over the labels that script and alphabet allow, is the probability of a language; times the
  share of the text in that script it is the score, from whose threshold on a language is believed.

Shapes: T captions, L labels, C columns of word-list evidence.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language import scripts, word_lists
from altdiffusion.curation.language.caption_words import Tokens, spans, tokens, totals
from altdiffusion.curation.language.fasttext_model import MAX_LETTERS, FastTextModel
from altdiffusion.curation.language.guess import UNKNOWN, Guess
from altdiffusion.curation.language.word_lists import WordLists
from altdiffusion.diffusion.pinned_files import read_pinned

_AT_ONCE = 65536  # captions; bounds the memory
_COLUMNS = 1024  # captions whose [L, T] arrays fit a core's cache
_MARKUP = r"<[^<>]{0,200}>|&[a-zA-Z]{2,8};|&#\d{1,6};"
_ADDRESS = r"(?i)(?:https?://|www\.)[!-~]+|[!-~]+@[!-~]+\.[!-~]+"
_FILE = r"(?i)[\w\-]+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|html?|com|net|org)\b"
# Scripts of several languages each: the model decides within them.
_ASKED = (scripts.LATIN, scripts.CYRILLIC, scripts.ARABIC, scripts.DEVANAGARI, scripts.HEBREW, scripts.OTHER)
_ALONE = ((scripts.THAI, "th"), (scripts.HANGUL, "ko"), (scripts.GREEK, "el"))
# Labels that a caption found on the web can be expected to have; of the others the model gives far too many.
_COMMON = (
    "af ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko ky "
    "lt lv mk ml mn mr ms my ne nl nn no pa pl pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh"
)
_SMALLEST = 1e-6  # a probability that the model means


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the evidence adds up, in natural logarithms; `benchmarks/language_id.py --fit` searches better ones."""

    sharpness: float = 1.0
    """Factor of the model's log-probabilities for a caption of 30 n-grams."""
    growth: float = 0.33
    """... times (n-grams / 30) to this power."""
    words: float = 0.6
    """Factor of the word lists' log-likelihoods."""
    steady: float = 30.0
    """n-grams from which on these grow as slowly as the model's: a list holds words, the model learned spelling."""
    listed: float = 0.6
    """A label without a list is credited with this share of what the best list gives a word that is listed,"""
    nearest: float = 0.9
    """or with this share of what the nearest languages' lists give where it has such,"""
    unlisted: float = 1.5
    """and with this much for a word that is on no list;"""
    most_other: float = 16.0
    """by all words of a caption together at most this far above or below that list,"""
    most_nearest: float = 2.5
    """or, where there are nearest ones, these (and less from `steady` on): lists must not outvote the model."""
    marker: float = 5.0
    """Credited to a label without a list for each small word that sets its group apart (`markers`),"""
    most_markers: float = 4.0
    """and for so many of them at most."""
    rare: float = 2.0
    """Taken off labels that are rare on the web,"""
    foreign: float = 5.0
    """and off languages whose alphabet lacks a letter of the caption: names are often foreign ones."""
    ideographs: float = 0.5
    """Factor of the model's log-odds for Chinese against Japanese next to those of `ideographs`."""


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """The labels of one script."""

    number: npt.NDArray[np.intp]
    """[K] of each label."""
    own: dict[int, int]
    """Place among them -> column of its list; of those that have one."""
    nearest: dict[tuple[int, int | None], npt.NDArray[np.intp]]
    """Column of the lists nearest to them, and of the one that counts their markers -> places; of those that have no
    list of their own."""
    others: npt.NDArray[np.intp]
    """Places of the rest."""
    bits: dict[int, int]
    """Place -> bit of its alphabet, of those whose alphabet is known."""
    rare: npt.NDArray[np.bool_]
    """[K]"""


class VectorisedEngine:
    """Joins letters, fastText's model and word lists, for whole columns."""

    def __init__(self, config: LanguageConfig, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self._model = _load_model(config.model, config.model_sha256)
        self._lists = _load_lists(config.words, config.words_sha256) if config.words_sha256 is not None else None
        scripts.load()
        self.labels = labels = self._model.labels
        self._labels = np.array([*labels, UNKNOWN], object)
        self._unknown = len(labels)
        self._number = {label: number for number, label in enumerate(labels)}
        self._candidates = {script: self._of_script(script) for script in (*_ASKED, scripts.HAN)}

    def _of_script(self, script: int) -> _Candidates:
        labels = [label for label in self._model.labels if scripts.may_write(label, script)]
        latin = script == scripts.LATIN
        own = {place: word_lists.own_list(label, latin) for place, label in enumerate(labels)}
        near = {place: word_lists.nearest(label) for place, label in enumerate(labels) if own[place] is None}
        nearest: dict[tuple[int, int | None], list[int]] = {}
        for place, column in near.items():
            if column is not None:
                nearest.setdefault((column, word_lists.marked(labels[place])), []).append(place)
        bits = {place: scripts.bit(label) for place, label in enumerate(labels)}
        common = _COMMON.split()
        return _Candidates(
            number=np.array([self._number[label] for label in labels], np.intp),
            own={place: column for place, column in own.items() if column is not None},
            nearest={columns: np.array(places, np.intp) for columns, places in nearest.items()},
            others=np.array([place for place, column in near.items() if column is None], np.intp),
            bits={place: bit for place, bit in bits.items() if bit is not None},
            rare=np.array([label not in common for label in labels]),
        )

    def guess(self, captions: pa.Array) -> Guess:
        """Return the best language of each caption (string, nulls allowed)."""
        text = pc.fill_null(captions.cast(pa.string()), "")
        parts = [self._guess(text.slice(start, _AT_ONCE)) for start in range(0, max(len(text), 1), _AT_ONCE)]
        number, score, letters, between = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Guess(labels=self._labels, number=number, score=score, letters=letters, open=between)

    def _guess(self, captions: pa.Array) -> tuple[npt.NDArray[Any], ...]:
        number = np.full(len(captions), self._unknown, np.intp)
        score = np.zeros(len(captions), np.float32)
        letters = np.zeros(len(captions), np.int32)
        between = np.zeros(len(captions), bool)
        text = _without_markup(captions)
        there = np.flatnonzero(pc.binary_length(text).to_numpy(zero_copy_only=False))
        if not len(there):
            return number, score, letters, between
        text = text if len(there) == len(text) else text.take(pa.array(there))
        cut, signs, evidence = _written(text)
        best = np.full(len(there), self._unknown, np.intp)
        sure = np.zeros(len(there), np.float32)
        for script, language in _ALONE:
            mine = evidence.script == script
            best[mine], sure[mine] = self._number.get(language, self._unknown), 1.0
        silent = self._judge_han(evidence, best, sure)
        asked = silent | np.isin(evidence.script, _ASKED)
        for capitals in (False, True):
            rows = np.flatnonzero(asked & (evidence.capitals == capitals))
            if len(rows):
                best[rows], sure[rows] = self._ask(cut.choose(rows), signs, evidence, rows, capitals)
        if self._lists is not None and silent.any():
            self._judge_ideographs(text.filter(pa.array(silent)), silent, best, sure)
            between[there[silent]] = True
        sure = np.minimum(sure * evidence.share, np.float32(1))
        best[sure <= 0] = self._unknown
        number[there], score[there], letters[there] = best, sure, evidence.letters
        return number, score, letters, between

    def _judge_han(
        self, evidence: scripts.Evidence, best: npt.NDArray[np.intp], sure: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Judge Han: kana is Japanese; without kana the repertoires of the national standards decide.

        Returns [T] where these decide nothing.
        """
        han = evidence.script == scripts.HAN
        chinese = evidence.simplified + evidence.traditional
        japanese = evidence.kana * 2 + evidence.japanese
        spoken = chinese + japanese
        zh, ja = (self._number.get(label, self._unknown) for label in ("zh", "ja"))
        best[han] = np.where(japanese > chinese, ja, zh)[han]
        sure[han] = (np.maximum(chinese, japanese) / np.maximum(spoken, 1))[han]
        return np.asarray(han & (spoken == 0))

    def _judge_ideographs(
        self,
        captions: pa.StringArray,
        silent: npt.NDArray[np.bool_],
        best: npt.NDArray[np.intp],
        sure: npt.NDArray[np.float32],
    ) -> None:
        """Decide between Chinese and Japanese by the words that ideographs are of.

        Args:
            captions: the ones without kana, which the model has judged.
        """
        assert self._lists is not None
        zh, ja = (self._number.get(label, self._unknown) for label in ("zh", "ja"))
        certain = np.log(np.clip(sure[silent], 0.01, 0.99) / (1 - np.clip(sure[silent], 0.01, 0.99)))
        odds = self._lists.ideographs.odds(captions)
        odds += self.weights.ideographs * np.where(best[silent] == ja, -certain, certain)
        best[silent] = np.where(odds >= 0, zh, ja)
        sure[silent] = 1 / (1 + np.exp(-np.abs(odds)))

    def _ask(
        self,
        cut: Tokens,
        signs: scripts.Letters,
        evidence: scripts.Evidence,
        rows: npt.NDArray[np.intp],
        capitals: bool,
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Return the best label, and its probability, of the captions `cut`, which are `rows` of `evidence`."""
        used = np.zeros(len(cut.different), bool)
        used[cut.code] = True
        chosen = np.flatnonzero(used[signs.token])
        words, number = signs.words.choose(chosen).distinct()
        small = scripts.lower(words)
        sums, count = self._model.sums(small if capitals else words)
        of_word = [*sums, count]
        if self._lists is not None:
            of_word += [*word_lists.pack(self._lists.gains(small, scripts.listed(small)))]
        edges = np.searchsorted(signs.token[chosen], np.arange(len(used) + 1))
        per_token = np.diff(edges)[cut.code]
        at, _ = spans(edges[cut.code], edges[cut.code + 1])
        per_caption = np.add.reduceat(per_token, cut.first)
        which = number[at]
        if evidence.mixed[rows].any():
            # Words of the other script are replaced by one without a meaning.
            foreign = signs.latin()[chosen[at]] != np.repeat(evidence.script[rows] == scripts.LATIN, per_caption)
            which[foreign & np.repeat(evidence.mixed[rows], per_caption)] = len(count)
            of_word = [np.append(lane, 0) for lane in of_word]
        total = totals(of_word, which, np.append(0, per_caption.cumsum()[:-1]))
        best = np.empty(len(rows), np.intp)
        sure = np.empty(len(rows), np.float32)
        for script in np.unique(evidence.script[rows]):
            mine = np.flatnonzero(evidence.script[rows] == script)
            for start in range(0, len(mine), _COLUMNS):
                some = mine[start : start + _COLUMNS]
                best[some], sure[some] = self._judge(
                    self._candidates[int(script)], total[:, some], evidence.allowed[rows[some]]
                )
        return best, sure

    def _judge(
        self, candidates: _Candidates, total: npt.NDArray[np.int64], allowed: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Return the best label of captions in one script, and its probability."""
        weights, lanes = self.weights, self._model.lanes
        count = total[lanes]
        log = self._model.probabilities(total[:lanes], count)[candidates.number]
        log += np.float32(_SMALLEST)
        np.log(log, out=log)
        log *= (weights.sharpness * (np.maximum(count, 1) / 30.0) ** weights.growth).astype(np.float32)
        log -= (weights.rare * candidates.rare).astype(np.float32)[:, None]
        if self._lists is not None:
            self._add_words(log, candidates, total[lanes + 1 :], count)
        foreign = np.float32(weights.foreign)
        for place, bit in candidates.bits.items():
            log[place] -= foreign * (~allowed >> np.uint64(bit) & np.uint64(1)).astype(np.float32)
        best = log.argmax(axis=0)
        # Row by row: NumPy's own sum along an axis adds in another order where there is but one caption.
        sure = np.float32(1) / sum(np.exp(log - log.max(axis=0)))
        return candidates.number[best], sure

    def _add_words(
        self,
        log: npt.NDArray[np.float32],
        candidates: _Candidates,
        lanes: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
    ) -> None:
        weights = self.weights
        slower = np.minimum((weights.steady / np.maximum(count, 1)) ** (1 - weights.growth), 1).astype(np.float32)
        nat = np.float32(weights.words * word_lists.UNIT * np.log(10) / 100) * slower
        best, unlisted = word_lists.unpack(lanes, (word_lists.BEST, word_lists.UNLISTED))
        strange = np.float32(weights.words * weights.unlisted) * slower * unlisted
        for place, column in candidates.own.items():
            log[place] += nat * word_lists.unpack(lanes, (column,))[0]
        for (column, marks), places in candidates.nearest.items():
            near = nat * word_lists.unpack(lanes, (column,))[0]
            near -= _within(np.float32(1 - weights.nearest) * near - strange, np.float32(weights.most_nearest) * slower)
            if marks is not None:
                (seen,) = word_lists.unpack(lanes, (marks,))
                near += np.float32(weights.marker) * np.minimum(seen, np.float32(weights.most_markers))
            log[places] += near
        other = nat * best
        log[candidates.others] += other - _within(
            np.float32(1 - weights.listed) * other - strange, np.float32(weights.most_other)
        )


def _within(values: npt.NDArray[np.float32], most: npt.NDArray[np.float32] | np.float32) -> npt.NDArray[np.float32]:
    return np.clip(values, -most, most)


def count_letters(captions: pa.Array) -> npt.NDArray[np.int32]:
    """Return [T] the weighted number of letters of captions (no nulls), as `Guess.letters` counts them."""
    scripts.load()
    letters = np.zeros(len(captions), np.int32)
    text = _without_markup(captions)
    there = np.flatnonzero(pc.binary_length(text).to_numpy(zero_copy_only=False))
    if len(there):
        letters[there] = _written(text.take(pa.array(there)))[2].letters
    return letters


def _written(text: pa.Array) -> tuple[Tokens, scripts.Letters, scripts.Evidence]:
    """Return the tokens of captions (none empty), the letters of each different one, and what they show."""
    cut = tokens(text)
    signs = scripts.letters(_readable(cut.different))
    return cut, signs, scripts.evidence(cut, signs)


@functools.lru_cache(maxsize=2)
def _load_model(uri: str, sha256: str) -> FastTextModel:
    """Load the model once per process, however many sources there are."""
    return FastTextModel(read_pinned(uri, sha256), uri)


@functools.lru_cache(maxsize=2)
def _load_lists(uri: str, sha256: str) -> WordLists:
    return WordLists(uri, sha256)


def _without_markup(captions: pa.Array) -> pa.Array:
    """Return captions (no nulls) without tags and entities, at most MAX_LETTERS of each."""
    data = np.frombuffer(captions.buffers()[2] or b"", np.uint8)
    if not ((data == ord("<")) | (data == ord("&"))).any() and not _longer(captions):
        return captions
    some = pc.match_substring_regex(captions, "[<&]")
    cleaned = pc.replace_substring_regex(captions.filter(some), _MARKUP, " ")
    captions = pc.replace_with_mask(captions, some, cleaned)
    return pc.utf8_slice_codeunits(captions, 0, MAX_LETTERS) if _longer(captions) else captions


def _longer(captions: pa.Array) -> bool:
    return len(captions) > 0 and bool(pc.max(pc.binary_length(captions)).as_py() > MAX_LETTERS)


def _readable(different: pa.StringArray) -> pa.StringArray:
    """Return tokens without URLs, e-mail addresses and file names; letters and accents are one. None gets empty."""
    _, offsets, data = different.buffers()
    bounds = np.frombuffer(offsets, np.int32)[different.offset : different.offset + len(different) + 1]
    raw = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    after = np.append(raw[1:], np.uint8(0))
    sign = (raw == ord("@")) | ((raw == ord(".")) & (after >= ord("0"))) | ((raw == ord(":")) & (after == ord("/")))
    accent = (raw == 0xCC) | (raw == 0xCD)  # the first byte of the combining ones
    written, accented = (_holding(which, bounds - bounds[0]) for which in (sign, accent))
    if written is not None:
        cleaned = different.filter(written)
        for pattern in (_ADDRESS, _FILE):
            cleaned = pc.replace_substring_regex(cleaned, pattern, " ")
        different = pc.replace_with_mask(different, written, cleaned)
    if accented is not None:
        # Arrow's utf8_normalize leaves letters and accents apart (pyarrow 25)
        whole = [unicodedata.normalize("NFC", token) for token in different.filter(accented).to_pylist()]
        different = pc.replace_with_mask(different, accented, pa.array(whole, pa.string()))
    return different


def _holding(bytes_: npt.NDArray[np.bool_], bounds: npt.NDArray[np.int32]) -> pa.BooleanArray | None:
    """Return which texts hold one of some bytes; None if no text does."""
    at = np.flatnonzero(bytes_)
    if not len(at):
        return None
    some = np.zeros(len(bounds) - 1, bool)
    some[np.searchsorted(bounds, at, side="right") - 1] = True
    return pa.array(some)
