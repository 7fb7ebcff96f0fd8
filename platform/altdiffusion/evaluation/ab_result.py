"""What people answered on a page of blind comparisons: win rate, ties, preference for a side, and agreement.

Shapes: J judges, N pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.ab_page import key_uri
from altdiffusion.evaluation.agreement import cohen_kappa, fleiss_kappa
from altdiffusion.evaluation.statistics import Rate, share_of
from altdiffusion.languages import in_order, named_language
from altdiffusion.storage.documents import Document, read_document

FORMAT = "altdiffusion-ab-1"
CHOICES = ("left", "right", "tie")
_WINNERS = ("a", "b", "tie")
_REMEDY = "give a file that the page of `altdiffusion ab` saved"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One judge's answers: which model won, per pair that was answered."""

    judge: str
    winners: tuple[str, ...]
    """[up to N] a, b or tie, in the page's order."""
    left: int
    """Number of times that the left image was chosen."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The analysis of all judges' answers to one page."""

    a: str
    b: str
    judges: int
    answers: int
    ties: int
    wins_b: Rate | None
    """Share of the answers without ties that B won; pairs are the independent observations. None without any."""
    p: float
    """Two-sided p value of the exact sign test over pairs that neither model is preferred."""
    by_language: dict[str, Rate]
    left: Rate | None
    """Share of the answers without ties that chose the left image; far from one half, judges preferred a side."""
    cohen: float | None
    """Cohen's kappa of two judges; None for another number of judges."""
    fleiss: float | None
    """Fleiss' kappa over the pairs that all judges answered; None for one judge."""

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "judges": self.judges,
            "answers": self.answers,
            "ties": self.ties,
            "wins_b": self.wins_b.to_json() if self.wins_b is not None else None,
            "p": self.p,
            "by_language": {code: rate.to_json() for code, rate in self.by_language.items()},
            "left": self.left.to_json() if self.left is not None else None,
            "cohen_kappa": self.cohen,
            "fleiss_kappa": self.fleiss,
        }

    def lines(self) -> list[str]:
        """Return the result for people."""
        out = [
            f"A  {self.a}",
            f"B  {self.b}",
            f"judges  {self.judges}, {self.answers:,} answers, {self.ties:,} of them no difference",
            f"B wins  {_shown(self.wins_b)} of the others, p {self.p:.3f} (sign test over pairs)",
            *(f"  {named_language(code):<16} {_shown(rate)}" for code, rate in self.by_language.items()),
            f"left side chosen  {_shown(self.left)}",
        ]
        for name, kappa in (("Cohen's", self.cohen), ("Fleiss'", self.fleiss)):
            if kappa is not None:
                out.append(f"agreement  {kappa:.2f} ({name} kappa)")
        return out


def analyse(lake: str, answer_files: Sequence[str]) -> Result:
    """Return the result of the files that a page saved for its judges.

    Raises:
        AltDiffusionError: a file is not of that form, they are of several pages or twice of one judge, or the lake
            does not hold the page's key.
    """
    documents = [_document(path) for path in answer_files]
    pages = {document.name("page") for document in documents}
    if len(pages) != 1:
        raise AltDiffusionError(
            "files of answers", f"are of {len(pages)} pages ({', '.join(sorted(pages))})", "give those of one page"
        )
    key = _key(lake, pages.pop())
    pairs = list(key.objects("pairs"))
    judged = [_answers(document, pairs) for document in documents]
    twice = [name for name, times in Counter(one.judge for one in judged).items() if times > 1]
    if twice:
        raise AltDiffusionError("files of answers", f"are twice of judge {twice[0]}", "give one file per judge")
    languages = [pair.text("language") for pair in pairs]
    flat = [(place, winner) for one in judged for place, winner in enumerate(one.winners)]
    decided = [(place, winner) for place, winner in flat if winner != "tie"]
    left = sum(one.left for one in judged)
    sums = Counter[int]()
    for place, winner in decided:
        sums[place] += 1 if winner == "b" else -1
    better, worse = sum(value > 0 for value in sums.values()), sum(value < 0 for value in sums.values())
    both = [one.winners for one in judged]
    complete = min(map(len, both))
    return Result(
        a=key.text("a"),
        b=key.text("b"),
        judges=len(judged),
        answers=len(flat),
        ties=len(flat) - len(decided),
        wins_b=_wins(decided),
        p=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        by_language={
            code: rate
            for code in in_order(languages)
            if (rate := _wins([entry for entry in decided if languages[entry[0]] == code])) is not None
        },
        left=share_of(np.arange(len(decided)) < left, np.arange(len(decided))).rate if decided else None,
        cohen=cohen_kappa(both[0][:complete], both[1][:complete]) if len(both) == 2 and complete else None,
        fleiss=fleiss_kappa(_counts([winners[:complete] for winners in both])) if len(both) > 1 and complete else None,
    )


def _document(path: str) -> Document:
    try:
        document = read_document(path, remedy=_REMEDY)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"file {path}", "does not exist", _REMEDY) from error
    if document.value.get("format") != FORMAT:
        raise document.wrong("format", FORMAT)
    return document


def _key(lake: str, page: str) -> Document:
    try:
        return read_document(key_uri(lake, page))
    except FileNotFoundError as error:
        raise AltDiffusionError(
            f"page {page}", f"has no key in the lake {lake}", "name the lake that `altdiffusion ab` was run with"
        ) from error


def _answers(document: Document, pairs: Sequence[Document]) -> Answers:
    given = document.texts("answers")
    if not 0 < len(given) <= len(pairs) or not set(given) <= set(CHOICES):
        raise document.wrong("answers", f"1 to {len(pairs)} of {', '.join(CHOICES)}")
    winners = []
    for choice, pair in zip(given, pairs, strict=False):
        left = pair.text("left")
        right = "b" if left == "a" else "a"
        winners.append({"left": left, "right": right}.get(choice, "tie"))
    return Answers(judge=document.text("judge"), winners=tuple(winners), left=given.count("left"))


def _wins(decided: Sequence[tuple[int, str]]) -> Rate | None:
    """Return the share that B won of (pair, winner)."""
    if not decided:
        return None
    pairs = np.unique([place for place, _ in decided], return_inverse=True)[1]
    return share_of(np.array([winner == "b" for _, winner in decided]), pairs).rate


def _counts(winners: Sequence[tuple[str, ...]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many judges chose each of a, b and tie, [N, 3]."""
    table = np.array(winners)
    return np.stack([(table == name).sum(axis=0) for name in _WINNERS], axis=1).astype(np.int64)


def _shown(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
