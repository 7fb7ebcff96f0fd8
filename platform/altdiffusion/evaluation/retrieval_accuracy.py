"""Retrieval accuracy: how often, per language, a judge names the concept that the prompt of an image asked for.

Shapes: N images, K concepts, L languages, R bootstrap draws.

The interval is a percentile bootstrap over concepts (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13). Images of one concept in several languages are correlated, so concepts are resampled, the same ones for
all languages. The draws are keyed, so a report is the same whenever it is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from altdiffusion.storage import files

ENGLISH = "en"
DRAWS = 1000
LEVEL = 0.95
Names = Literal["all", "seen", "held out"]
NAMES: tuple[Names, ...] = ("all", "seen", "held out")
"""Groups of (concept, language) pairs: all, those whose name was in the training data, and those that were held out."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The concept and language that one prompt asks for."""

    concept: str
    language: str
    seen: bool
    """Whether this concept's name in this language was in the training data."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The share of `total` images that were named correctly, with its interval."""

    value: float
    low: float
    high: float
    total: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "total": self.total}


@dataclass(frozen=True, kw_only=True)
class StateScore:
    """The accuracy of one state of the model. A language without an image in a group is left out of that group."""

    state: str
    concepts: int
    languages: Mapping[Names, Mapping[str, Rate]]
    others: Mapping[Names, Rate]
    """Unweighted mean of the other languages' rates; a group without such a language is left out."""
    ratio: Rate | None
    """`others` over English, for all names; None where English was never right or not asked for."""

    @property
    def english(self) -> Rate | None:
        return self.languages["all"].get(ENGLISH)

    @property
    def lowest(self) -> tuple[str, Rate]:
        """The other language with the lowest rate over all names."""
        rates = {code: rate for code, rate in self.languages["all"].items() if code != ENGLISH}
        code = min(rates, key=lambda code: rates[code].value)
        return code, rates[code]

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "concepts": self.concepts,
            "languages": {
                names: {code: rate.to_json() for code, rate in rates.items()} for names, rates in self.languages.items()
            },
            "others": {names: rate.to_json() for names, rate in self.others.items()},
            "ratio": self.ratio.to_json() if self.ratio is not None else None,
        }


def read_cases(uri: str) -> dict[str, Case]:
    """Return the cases by prompt id from JSON lines with id, language, concept and seen; other fields are ignored.

    Raises:
        AltDiffusionError: the file or one of its rows is unusable.
    """
    try:
        lines = files.read_bytes(uri).decode().splitlines()
    except FileNotFoundError as error:
        raise AltDiffusionError(f"cases file {uri}", "does not exist", "check the path") from error
    except UnicodeDecodeError as error:
        raise AltDiffusionError(f"cases file {uri}", "is not UTF-8", "save it as UTF-8") from error
    cases = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            case = Case(concept=row["concept"], language=row["language"], seen=row["seen"])
            valid = isinstance(case.concept, str) and case.language in CODES and isinstance(case.seen, bool)
            name = row["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise _bad_row(uri, number, f"{type(error).__name__}: {error}") from error
        if not valid or not isinstance(name, str) or name in cases:
            raise _bad_row(uri, number, "a wrong type, an unknown language or a repeated id")
        cases[name] = case
    if not cases:
        raise AltDiffusionError(f"cases file {uri}", "holds no rows", "write one row per prompt")
    return cases


def select_cases(cases: Mapping[str, Case], ids: Sequence[str]) -> list[Case]:
    """Return the cases of generated images, in the images' order.

    Raises:
        AltDiffusionError: an image's prompt is not among the cases.
    """
    missing = next((name for name in ids if name not in cases), None)
    if missing is not None:
        raise AltDiffusionError(
            f"prompt {missing}",
            "is not in the cases file",
            "evaluate images of the prompts that the cases file describes",
        )
    return [cases[name] for name in ids]


def score(state: str, named: NDArray[Any], cases: Sequence[Case], *, seed: int = 0) -> StateScore:
    """Return the accuracy of one state.

    Args:
        state: its name.
        named: [N] concepts that the judge named.
        cases: the cases of the N images.
        seed: the bootstrap's seed.
    """
    _check_lengths(state, named, cases)
    right = named.astype(str) == np.array([case.concept for case in cases], dtype=str)
    concepts, concept_of = np.unique([case.concept for case in cases], return_inverse=True)
    codes = [code for code in CODES if any(case.language == code for case in cases)]
    language_of = np.array([codes.index(case.language) for case in cases])
    seen = np.array([case.seen for case in cases])
    weights = _draws(len(concepts), seed)
    languages: dict[Names, dict[str, Rate]] = {}
    others: dict[Names, Rate] = {}
    ratio = None
    for names in NAMES:
        chosen = np.ones(len(cases), bool) if names == "all" else seen == (names == "seen")
        asked, got = np.zeros((2, len(codes), len(concepts)))
        np.add.at(asked, (language_of[chosen], concept_of[chosen]), 1)
        np.add.at(got, (language_of[chosen], concept_of[chosen]), right[chosen])
        drawn = _ratio(got @ weights, asked @ weights)  # [L, 1 + R]; column 0 is not a draw but has every concept once
        totals = asked.sum(axis=1).astype(int)
        present = [i for i in range(len(codes)) if totals[i]]
        languages[names] = {codes[i]: _rate(drawn[i], totals[i]) for i in present}
        foreign = [i for i in present if codes[i] != ENGLISH]
        if foreign:
            with np.errstate(invalid="ignore"):
                mean = _mean(drawn[foreign])
            others[names] = _rate(mean, totals[foreign].sum())
            if names == "all" and ENGLISH in codes and drawn[codes.index(ENGLISH), 0] > 0:
                ratio = _rate(_ratio(mean, drawn[codes.index(ENGLISH)]), totals[foreign].sum())
    return StateScore(state=state, concepts=len(concepts), languages=languages, others=others, ratio=ratio)


def shuffled(named: NDArray[Any], cases: Sequence[Case], *, seed: int = 0) -> Rate:
    """Return the control: the same answers compared with other captions of the same language, which leaves chance.

    Within a language the captions move on along a keyed order, so none stays with its image.
    """
    _check_lengths("shuffled captions", named, cases)
    concepts = np.array([case.concept for case in cases], dtype=object)
    moved = concepts.copy()
    random = np.random.Generator(np.random.Philox(key=seed))
    for code in sorted({case.language for case in cases}):
        rows = np.array([i for i, case in enumerate(cases) if case.language == code])
        order = random.permutation(len(rows))
        moved[rows[order]] = concepts[rows[np.roll(order, 1)]]
    return rate_of(named.astype(str) == moved.astype(str), concepts.astype(str), seed=seed)


def rate_of(right: NDArray[np.bool_], concepts: NDArray[Any], *, seed: int = 0) -> Rate:
    """Return the share of `right` [N] with its bootstrap interval over the concepts [N] of the images."""
    names, concept_of = np.unique(concepts, return_inverse=True)
    got = np.bincount(concept_of, weights=right, minlength=len(names))
    asked = np.bincount(concept_of, minlength=len(names))
    weights = _draws(len(names), seed)
    return _rate(_ratio(got @ weights, asked @ weights), len(right))


def _draws(concepts: int, seed: int) -> NDArray[np.float64]:
    """Return the counts of each concept, [K, 1 + R]; column 0 has each once, the others are keyed resamples."""
    random = np.random.Generator(np.random.Philox(key=seed))
    picked = random.integers(0, concepts, (DRAWS, concepts))
    weights = np.zeros((concepts, 1 + DRAWS))
    weights[:, 0] = 1
    np.add.at(weights, (picked.T, np.arange(1, 1 + DRAWS)[None, :]), 1)
    return weights


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.full(np.broadcast(top, bottom).shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out


def _mean(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the languages that have an image in the draw."""
    present = ~np.isnan(drawn)
    return _ratio(np.where(present, drawn, 0.0).sum(axis=0), present.sum(axis=0).astype(float))


def _rate(drawn: NDArray[np.float64], total: int) -> Rate:
    edges = np.nanquantile(drawn[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(value=float(drawn[0]), low=float(edges[0]), high=float(edges[1]), total=int(total))


def _check_lengths(what: str, named: NDArray[Any], cases: Sequence[Case]) -> None:
    if named.ndim != 1 or len(named) != len(cases) or not len(cases):
        raise ValueError(f"{what}: {named.shape} answers for {len(cases)} cases")


def _bad_row(uri: str, number: int, problem: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"cases file {uri}, row {number}",
        f"is unusable ({problem})",
        "write id, language, concept and seen (true or false)",
    )
