"""The decision: which captions are in a configured language, by an engine's guess and a threshold per language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language.fasttext_engine import FastTextEngine
from altdiffusion.curation.language.guess import UNKNOWN, Guess, LanguageEngine
from altdiffusion.curation.language.vectorised_engine import VectorisedEngine
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import nearest_language

_LABEL_NATS = 2.5
"""Natural logarithm of the odds that a source's label adds where ideographs leave Chinese and Japanese open."""


def open_engine(config: LanguageConfig) -> LanguageEngine:
    """Load the engine that a config names."""
    return FastTextEngine(config) if config.engine == "fasttext" else VectorisedEngine(config)


def _meant(missing: Sequence[str], labels: Sequence[str]) -> str:
    """Return the labels that unknown languages may have meant, as the beginning of a remedy."""
    found = {code: nearest_language(code, labels) for code in missing}
    return "".join(f"write {near} for {code}; " for code, near in found.items() if near is not None)


class LanguageIdentifier:
    """Loads an engine once in the worker; works on columns."""

    def __init__(self, config: LanguageConfig, engine: LanguageEngine | None = None) -> None:
        """Load the engine, unless one is given.

        Raises:
            AltDiffusionError: the model cannot be read, or a configured language is not one of its labels.
        """
        self.config = config
        self.engine = engine or open_engine(config)
        labels = self.engine.labels
        missing = [code for code in (*config.languages, *config.thresholds) if code not in labels]
        if missing:
            raise AltDiffusionError(
                f"languages {', '.join(missing)}",
                "are not labels of the language model",
                f"{_meant(missing, labels)}choose among: {' '.join(sorted(labels))}",
            )
        self._labels = np.array([*labels, UNKNOWN], object)
        self._unknown = len(labels)
        self._number = {label: number for number, label in enumerate(labels)}

    def guess(self, captions: pa.Array) -> Guess:
        """Return the best language of each caption (string, nulls allowed)."""
        return self.engine.guess(captions)

    def identify(self, captions: pa.Array, source_labels: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Return the decision for each caption.

        Returns:
            language: string, null where none of the configured languages is believed.
            score: float32, the confidence.
            guess: string, the best label all the same, for the rejects.
        """
        guess = self._with_label(self.guess(captions), source_labels)
        configured = np.isin(self._labels, self.config.languages)
        accepted = configured[guess.number] & (guess.score >= self.needed(guess, source_labels))
        names = pa.array(self._labels, pa.string())
        language = names.take(pa.array(guess.number, mask=~accepted))
        return language, pa.array(guess.score, pa.float32()), names.take(pa.array(guess.number))

    def _with_label(self, guess: Guess, source_labels: pa.Array) -> Guess:
        """Decide between Chinese and Japanese also by the source's label, where the letters leave that open."""
        zh, ja = (self._number.get(label, self._unknown) for label in ("zh", "ja"))
        given = self._labelled(source_labels)
        some = np.flatnonzero(guess.open & (guess.score > 0) & ((given == zh) | (given == ja)))
        if not len(some):
            return guess
        number, score = guess.number.copy(), guess.score.copy()
        agrees = given[some] == number[some]
        # in a text with other letters, the score is a share of the probability
        odds = np.log(np.clip(score[some], 0.5, 0.999) / (1 - np.clip(score[some], 0.5, 0.999)))
        odds += np.where(agrees, _LABEL_NATS, -_LABEL_NATS)
        number[some] = np.where(odds >= 0, number[some], given[some])
        score[some] = 1 / (1 + np.exp(-np.abs(odds)))
        return replace(guess, number=number, score=score)

    def _labelled(self, source_labels: pa.Array) -> npt.NDArray[np.int32]:
        """Return the number of the source's label, [T], -1 where it has none that is a label of the model."""
        given = pc.index_in(source_labels, value_set=pa.array(self._labels[:-1], pa.string()))
        return np.asarray(pc.fill_null(given, -1).to_numpy(zero_copy_only=False))

    def needed(self, guess: Guess, source_labels: pa.Array) -> npt.NDArray[np.float32]:
        """Return the score each caption must reach: by language and length, less where the source's label agrees."""
        config = self.config
        base = np.array([config.thresholds.get(label, config.threshold) for label in self._labels], np.float32)
        missing = np.maximum(1.0 - guess.letters / max(config.short_letters, 1), 0.0)
        needed = base[guess.number] + config.short_penalty * missing
        given = self._labelled(source_labels)
        agrees = given == guess.number
        differs = np.isin(given, [self._number[code] for code in config.languages]) & ~agrees
        needed -= np.where(agrees, config.agreement_bonus, 0.0)
        needed += np.where(differs, config.difference_penalty, 0.0)
        return np.minimum(needed, 1.0).astype(np.float32)
