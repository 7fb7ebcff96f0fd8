"""Which language a caption is in: letters first, then fastText among what the letters leave open.

fastText's lid.176 (Joulin et al., arXiv 1607.01759; model under CC-BY-SA 3.0) answers `en 0.12` for anything without
letters, flips on capitals, and takes product names for languages; so the text is cleaned first, and a text without
letters is `unknown`. Its probabilities are renormalised over the labels that the script and the alphabet allow; what
lies outside its first `TOP` answers counts against the language. A language is believed from its threshold on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation import scripts
from altdiffusion.curation.assets import local_pinned
from altdiffusion.curation.config import LanguageConfig
from altdiffusion.errors import AltDiffusionError

UNKNOWN = "unknown"
TOP = 8
_PREFIX = "__label__"
# In this order: markup, addresses, file names, then words with digits in them (product codes, sizes, dates).
_NOISE = (
    r"<[^<>]{0,200}>|&[a-zA-Z]{2,8};|&#\d{1,6};",
    r"(?i)\b(?:https?://|www\.)\S+|\S+@\S+\.\S+",
    r"(?i)\b[\w\-]+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|html?|com|net|org)\b",
    r"[\p{L}\p{M}]*\p{Nd}[\p{L}\p{M}\p{Nd}]*",
    r"[_#@|/\\*+=~^<>{}\[\]\"“”«»•·…\n\r\t]+",
)
# In Russian the hard sign only stands before e, ё, ю, я.
_BULGARIAN = "(?i)ъ(?:[^еёюя]|$)"
# Scripts of several languages each: the model decides within them.
_ASKED = (scripts.LATIN, scripts.CYRILLIC, scripts.ARABIC, scripts.DEVANAGARI, scripts.HEBREW, scripts.OTHER)
_CONTROL = r"[\p{Cc}\p{Co}\x{200E}\x{200F}\x{2028}-\x{202E}\x{2060}-\x{2069}\x{FEFF}\x{FFFD}]+"
# The published training data appends a tab and a language code to captions (FACTS 1): never part of the text.
_SUFFIX = r"\t[A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?\s*$"


def clean_caption(captions: pa.ChunkedArray | pa.Array) -> Any:
    """Captions as stored: no language suffix, no control or direction characters, single spaces; null stays null."""
    cleaned = pc.replace_substring_regex(captions, _SUFFIX, "")
    cleaned = pc.replace_substring_regex(cleaned, _CONTROL, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(cleaned, r"\s+", " "))


def text_for_model(captions: pa.Array) -> pa.Array:
    """Captions as fastText should see them: noise removed, lower case where all is capitals; null becomes empty."""
    text = pc.fill_null(captions, "")
    for pattern in _NOISE:
        text = pc.replace_substring_regex(text, pattern, " ")
    text = pc.if_else(pc.utf8_is_upper(text), pc.utf8_lower(text), text)
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"\s+", " "))


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The best language of T captions, whether or not it is believed."""

    code: npt.NDArray[np.object_]
    """[T] label, UNKNOWN where there is nothing to judge."""
    score: npt.NDArray[np.float32]
    """[T] probability among what the letters allow, times the share of the text in that script; 0 to 1."""
    letters: npt.NDArray[np.int32]
    """[T] weighted number of letters."""


class LanguageIdentifier:
    """Loads the model once in the worker; works on columns."""

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config
        self._model = _load(local_pinned(config.model, config.model_sha256))
        self._labels = [label.removeprefix(_PREFIX) for label in self._model.getLabels("strict")[0]]
        missing = [code for code in (*config.languages, *config.thresholds) if code not in self._labels]
        if missing:
            raise AltDiffusionError(
                f"languages {', '.join(missing)}",
                "are no labels of the language model",
                f"choose among: {' '.join(sorted(self._labels))}",
            )
        self._index = {_PREFIX + label: number for number, label in enumerate(self._labels)}
        self._may_write = np.array(
            [[scripts.may_write(label, script) for label in self._labels] for script in range(scripts.SCRIPTS)]
        )
        self._number = {label: number for number, label in enumerate(self._labels)}
        bits = [scripts.bit(label) for label in self._labels]
        self._bit = np.array([0 if b is None else 1 << b for b in bits], np.uint64)

    def guess(self, captions: pa.Array) -> Guess:
        """The best language of each caption, by letters and model."""
        text = text_for_model(captions)
        found = scripts.evidence(text)
        code = np.full(len(text), UNKNOWN, object)
        score = np.zeros(len(text), np.float32)
        for script, language in ((scripts.THAI, "th"), (scripts.HANGUL, "ko"), (scripts.GREEK, "el")):
            mine = found.script == script
            code[mine], score[mine] = language, found.share[mine]
        silent = _judge_han(found, code, score)
        rows = np.flatnonzero(silent | np.isin(found.script, _ASKED))
        if len(rows):
            best, probability = self._ask(text.take(pa.array(rows)), found, rows)
            code[rows] = best
            score[rows] = probability * found.share[rows]
        code[score <= 0] = UNKNOWN
        return Guess(code=code, score=np.minimum(score, 1.0), letters=found.letters)

    def _ask(
        self, text: pa.Array, found: scripts.Evidence, rows: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """fastText's answer among the labels that script and alphabet allow."""
        labels, probabilities = self._predict(text.to_pylist())
        allowed = self._may_write[found.script[rows][:, None], labels]
        allowed &= (self._bit[labels] & ~found.allowed[rows][:, None]) == 0
        hard_sign = pc.match_substring_regex(text, _BULGARIAN).to_numpy(zero_copy_only=False)
        allowed &= ~(hard_sign[:, None] & (labels == self._number["ru"]))
        kept = np.where(allowed, probabilities, 0.0)
        outside = (probabilities - kept).sum(axis=1)
        best = kept.argmax(axis=1)
        at = np.arange(len(rows))
        names = np.array(self._labels, object)[labels[at, best]]
        return names, (kept[at, best] / np.maximum(1.0 - outside, 1e-6)).astype(np.float32)

    def _predict(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """[T, TOP] label numbers and probabilities; missing answers have probability 0."""
        names, values = self._model.multilinePredict([text + "\n" for text in texts], TOP, 0.0, "strict")
        lengths = np.fromiter(map(len, names), np.intp, len(names))
        flat = np.fromiter(
            map(self._index.__getitem__, itertools.chain.from_iterable(names)), np.intp, int(lengths.sum())
        )
        labels = np.zeros((len(texts), TOP), np.intp)
        probabilities = np.zeros((len(texts), TOP), np.float32)
        filled = np.arange(TOP) < lengths[:, None]
        labels[filled] = flat
        if len(flat):
            probabilities[filled] = np.minimum(np.concatenate(values), 1.0)
        return labels, probabilities

    def identify(self, captions: pa.Array, source_labels: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        """The decision for each caption.

        Returns:
            language: string, null where none of the configured languages is believed.
            score: float32, the confidence.
            guess: string, the best label all the same, for the rejects.
        """
        guess = self.guess(captions)
        accepted = np.isin(guess.code, self.config.languages) & (guess.score >= self.needed(guess, source_labels))
        language = pa.array(guess.code, pa.string(), mask=~accepted)
        return language, pa.array(guess.score, pa.float32()), pa.array(guess.code, pa.string())

    def needed(self, guess: Guess, source_labels: pa.Array) -> npt.NDArray[np.float32]:
        """[T] the score each caption must reach: by language and length, less where the source's label agrees."""
        config = self.config
        base = np.array([config.thresholds.get(label, config.threshold) for label in self._labels], np.float32)
        at = np.fromiter((self._number.get(code, 0) for code in guess.code), np.intp, len(guess.code))
        needed = base[at] + np.where(guess.letters < config.short_letters, config.short_penalty, 0.0)
        given = np.array(source_labels.to_pylist(), object)
        agrees = np.asarray(given == guess.code, bool)
        differs = np.isin(given, config.languages) & ~agrees
        needed -= np.where(agrees, config.agreement_bonus, 0.0)
        needed += np.where(differs, config.difference_penalty, 0.0)
        return np.minimum(needed, 1.0).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _load(path: str) -> Any:
    """The model's C++ object; one a process, however many sources are worked."""
    import fasttext.FastText

    fasttext.FastText.eprint = lambda *_, **__: None  # it says a line on every load
    return fasttext.FastText.load_model(path).f


def _judge_han(
    found: scripts.Evidence, code: npt.NDArray[np.object_], score: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Kana is Japanese; without kana the repertoires of the national standards decide.

    Returns [T] where ideographs say nothing, so that the model has to be asked.
    """
    han = found.script == scripts.HAN
    chinese = found.simplified + found.traditional
    japanese = found.kana * 2 + found.japanese
    spoken = chinese + japanese
    code[han] = np.where(japanese > chinese, "ja", "zh")[han]
    score[han] = (found.share * np.maximum(chinese, japanese) / np.maximum(spoken, 1))[han]
    return np.asarray(han & (spoken == 0))
