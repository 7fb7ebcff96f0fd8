"""Retrieval accuracy: how often, per language, judges name the concept that the prompt of an image asked for.

Images of one concept in several languages are correlated, so concepts are the clusters of all statistics
(statistics.py). Shapes: N cases, M images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.outcomes import Case, Group, Outcomes
from altdiffusion.evaluation.statistics import (
    Difference,
    Rate,
    Share,
    difference_of,
    holm,
    p_no_worse,
    ratio_of,
    share_of,
)

ENGLISH = "en"
Names = Literal["all", "seen", "text", "held out"]
NAMES: tuple[Names, ...] = ("all", "seen", "text", "held out")
"""(concept, language) pairs: all, and those of each group; these are the keys of a stored evaluation."""
NAMES_OF: Mapping[Group, Names] = {"pictures": "seen", "text": "text", "unseen": "held out"}


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
    text_to_pictures: Rate | None = None
    """`others` of names known from text over that of names learned with images; None without either, or where the
    latter were never right."""

    @property
    def english(self) -> Rate | None:
        return self.languages["all"].get(ENGLISH)

    @property
    def lowest(self) -> tuple[str, Rate] | None:
        """The other language with the lowest rate over all names; None where there is no other language."""
        rates = {code: rate for code, rate in self.languages["all"].items() if code != ENGLISH}
        code = min(rates, key=lambda code: rates[code].value, default=None)
        return None if code is None else (code, rates[code])

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "concepts": self.concepts,
            "languages": {
                names: {code: rate.to_json() for code, rate in rates.items()}
                for names, rates in self.languages.items()
                if rates or names != "text"
            },
            "others": {names: rate.to_json() for names, rate in self.others.items()},
            "ratio": self.ratio.to_json() if self.ratio is not None else None,
            "text_to_pictures": self.text_to_pictures.to_json() if self.text_to_pictures is not None else None,
        }


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one state gained or lost against another one, on the same prompts and noise."""

    first: str
    second: str
    languages: Mapping[str, Difference]
    corrected: Mapping[str, float]
    """p value by language, after Holm's correction for the number of languages."""
    others: Difference | None
    """Change of the unweighted mean over the languages other than English; None where there are none."""

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "languages": {
                code: {**difference.to_json(), "p_holm": self.corrected[code]}
                for code, difference in self.languages.items()
            },
            "others": self.others.to_json() if self.others is not None else None,
        }


class _Measured:
    """The outcomes of a state as arrays, and its shares.

    Args:
        clusters: place of each concept, the same for all states that are compared.
    """

    def __init__(self, outcomes: Outcomes, clusters: Mapping[str, int]) -> None:
        self._outcomes = outcomes
        self._count = len(clusters)
        self._clusters = np.array([clusters[case.concept] for case in outcomes.cases], np.int64)
        self._languages = np.array([case.language for case in outcomes.cases], dtype=object)
        self._names = np.array([NAMES_OF[case.group] for case in outcomes.cases], dtype=object)

    def of(self, languages: Sequence[str], names: Names = "all") -> Share | None:
        """Return the mean of the languages' shares, of those that have a case in the group; None without any."""
        chosen = np.isin(self._languages, list(languages))
        if names != "all":
            chosen &= self._names == names
        if not chosen.any():
            return None
        codes = {code: place for place, code in enumerate(languages)}
        groups = np.array([codes[code] for code in self._languages[chosen]], np.int64)
        return share_of(
            self._outcomes.right[chosen],
            self._clusters[chosen],
            groups,
            self._outcomes.images[chosen],
            count=self._count,
        )


def _measured(*states: Outcomes) -> Iterator[_Measured]:
    clusters = {name: place for place, name in enumerate(sorted({case.concept for case in states[0].cases}))}
    for outcomes in states:
        yield _Measured(outcomes, clusters)


def score(state: str, outcomes: Outcomes) -> StateScore:
    """Return the accuracy of one state."""
    (measured,) = _measured(outcomes)
    foreign = [code for code in outcomes.languages if code != ENGLISH]
    languages: dict[Names, dict[str, Rate]] = {}
    others: dict[Names, Rate] = {}
    means: dict[Names, Share] = {}
    for names in NAMES:
        shares = {code: measured.of([code], names) for code in outcomes.languages}
        languages[names] = {code: share.rate for code, share in shares.items() if share is not None}
        mean = measured.of(foreign, names)
        if mean is not None:
            means[names], others[names] = mean, mean.rate
    concepts = len({case.concept for case in outcomes.cases})
    return StateScore(
        state=state,
        concepts=concepts,
        languages=languages,
        others=others,
        ratio=_over(means.get("all"), measured.of([ENGLISH])),
        text_to_pictures=_over(means.get("text"), means.get("seen")),
    )


def _over(first: Share | None, second: Share | None) -> Rate | None:
    """Return the first share over the second one; None without either, or where the second is 0."""
    return ratio_of(first, second) if first is not None and second is not None and second.value > 0 else None


def change(first: str, before: Outcomes, second: str, after: Outcomes) -> Change:
    """Return what the second state gained or lost against the first one.

    Raises:
        AltDiffusionError: they were not measured on the same cases.
    """
    check_same_cases(first, before, second, after)
    old, new = _measured(before, after)
    languages: dict[str, Difference] = {}
    for code in before.languages:
        shares = old.of([code]), new.of([code])
        assert shares[0] is not None and shares[1] is not None
        languages[code] = difference_of(shares[0], shares[1])
    corrected = holm([difference.p for difference in languages.values()])
    foreign = [code for code in before.languages if code != ENGLISH]
    means = old.of(foreign), new.of(foreign)
    return Change(
        first=first,
        second=second,
        languages=languages,
        corrected=dict(zip(languages, corrected, strict=True)),
        others=difference_of(means[0], means[1]) if means[0] is not None and means[1] is not None else None,
    )


def no_worse(before: Outcomes, after: Outcomes, margin: float) -> dict[str, float]:
    """Return by language the p value, corrected by Holm, of the test that `after` is not worse than `before`.

    Args:
        margin: loss, as a share, that is still accepted.

    Raises:
        AltDiffusionError: they were not measured on the same cases.
    """
    check_same_cases("the first", before, "the second", after)
    old, new = _measured(before, after)
    found: dict[str, float] = {}
    for code in before.languages:
        shares = old.of([code]), new.of([code])
        assert shares[0] is not None and shares[1] is not None
        found[code] = p_no_worse(shares[0], shares[1], margin)
    return dict(zip(found, holm(list(found.values())), strict=True))


def check_same_cases(first: str, before: Outcomes, second: str, after: Outcomes) -> None:
    """Refuse states that were not measured on the same prompts and numbers of images, in the same order.

    Raises:
        AltDiffusionError: the error names both.
    """
    what = f"states {first} and {second}"
    remedy = "evaluate both with the same cases and sampling"
    if len(before.ids) != len(after.ids):
        raise AltDiffusionError(what, f"were measured on {len(before.ids):,} and {len(after.ids):,} cases", remedy)
    rows = (zip(one.ids, one.cases, one.images.tolist(), strict=True) for one in (before, after))
    for mine, other in zip(*rows, strict=True):
        if mine != other:
            raise AltDiffusionError(what, f"were measured on other cases ({mine[0]} and {other[0]})", remedy)


def shuffled(named: NDArray[Any], cases: Sequence[Case], *, seed: int = 0) -> Rate:
    """Return the control: the same answers compared with other captions of the same language, which leaves chance.

    Within a language the captions move on along a keyed order, so none stays with its image.

    Args:
        named: [M] the concept that a judge named in each image.
        cases: [M] what each image was requested for.
    """
    concepts = np.array([case.concept for case in cases], dtype=object)
    moved = concepts.copy()
    random = np.random.Generator(np.random.Philox(key=seed))
    for code in sorted({case.language for case in cases}):
        rows = np.array([i for i, case in enumerate(cases) if case.language == code])
        order = random.permutation(len(rows))
        moved[rows[order]] = concepts[rows[np.roll(order, 1)]]
    return rate_of(named.astype(str) == moved.astype(str), concepts.astype(str))


def rate_of(right: NDArray[Any], concepts: NDArray[Any]) -> Rate:
    """Return the share of `right` [M], 0..1 each, with its interval; images of one concept [M] are a cluster."""
    return share_of(right, np.unique(concepts, return_inverse=True)[1]).rate
