"""The gate: a checkpoint replaces the champion only if no language is shown to be too much worse.

Both were evaluated on the same cases, with the same seeds and judges; the outcomes are compared case by case. Each
language passes a test of non-inferiority: the hypothesis that the candidate's share is below the champion's by the
margin or more must be rejected, after Holm's correction for the number of languages. The burden of proof is the
candidate's: few prompts refuse it even where it is equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.margins import ALPHA, MARGIN
from altdiffusion.evaluation.outcomes import Outcomes
from altdiffusion.evaluation.retrieval_accuracy import Change, change, no_worse
from altdiffusion.languages import named_language
from altdiffusion.storage import evaluations


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stored evaluation of a model."""

    name: str
    state: str
    protocol: Mapping[str, Any]
    outcomes: str
    """SHA-256 of the file of outcomes."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate found."""

    candidate: Measured
    champion: Measured
    change: Change
    """From the champion to the candidate."""
    p_values: Mapping[str, float]
    """By language, of the test of non-inferiority, after Holm's correction."""
    margin: float
    alpha: float

    @property
    def refused(self) -> list[str]:
        """The languages that were not shown to hold the champion's level."""
        return [code for code, p in self.p_values.items() if p > self.alpha]

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluation": self.candidate.name,
            "against": self.champion.name,
            "margin": self.margin,
            "alpha": self.alpha,
            "change": self.change.to_json(),
            "p_no_worse": dict(self.p_values),
        }

    def lines(self) -> list[str]:
        """Return one line per language, for people."""
        out = []
        for code, p in self.p_values.items():
            one = self.change.languages[code]
            shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
            verdict = "" if p <= self.alpha else "   below the floor, or not shown to hold it"
            out.append(
                f"{named_language(code):<16} {100 * one.value:+6.1f} points [{100 * one.low:+.1f}, "
                f"{100 * one.high:+.1f}]   p {shown}{verdict}"
            )
        return out


def decide(
    lake: str, candidate: str, champion: str, *, margin: float = MARGIN, alpha: float = ALPHA, name: str | None = None
) -> Decision:
    """Return whether a model may replace another one.

    Args:
        candidate: content digest of its model folder.
        champion: content digest of the model folder to be replaced.
        margin: loss, as a share of the images, that is accepted in a language.
        alpha: level of the test.
        name: the candidate's evaluation; None takes the one that can be compared.

    Raises:
        AltDiffusionError: one of them was not evaluated, no two evaluations can be compared, or several can.
    """
    mine = [one for one in measured(lake, candidate) if name is None or one.name == name]
    theirs = list(measured(lake, champion))
    for what, content, found in (("candidate", candidate, mine), ("champion", champion, theirs)):
        if not found:
            which = f" of the name {name}" if name is not None and what == "candidate" else ""
            raise AltDiffusionError(
                f"{what}, model {content[:12]}",
                f"has no stored evaluation{which} with outcomes",
                "run jobs.evaluate with it as a state",
            )
    pairs = [(one, other) for one in mine for other in theirs if one.protocol == other.protocol]
    if not pairs:
        raise AltDiffusionError(
            f"evaluation {mine[0].name} of the candidate and {theirs[0].name} of the champion",
            f"cannot be compared: {'; '.join(differences(mine[0].protocol, theirs[0].protocol))}",
            "evaluate both with one config, best as two states of one job",
        )
    if any(pair[0].protocol != pairs[0][0].protocol for pair in pairs):
        names = sorted({pair[0].name for pair in pairs})
        raise AltDiffusionError(
            "the candidate", f"was evaluated in several ways ({', '.join(names)})", "choose one by --evaluation"
        )
    one, other = min(pairs, key=lambda pair: (pair[0].name != pair[1].name, pair[0].name, pair[1].name))
    before, after = outcomes_of(lake, other), outcomes_of(lake, one)
    return Decision(
        candidate=one,
        champion=other,
        change=change("champion", before, "candidate", after),
        p_values=no_worse(before, after, margin),
        margin=margin,
        alpha=alpha,
    )


def measured(lake: str, content: str) -> Iterator[Measured]:
    """Yield the stored evaluations of a model that keep their outcomes, by name."""
    for name, report, state in evaluations.of_model(lake, content):
        if isinstance(report.get("protocol"), dict) and isinstance(report.get("outcomes"), str):
            yield Measured(
                name=name, state=str(state["state"]), protocol=report["protocol"], outcomes=report["outcomes"]
            )


def outcomes_of(lake: str, one: Measured) -> Outcomes:
    """Return the outcomes of a stored evaluation.

    Raises:
        AltDiffusionError: its file of outcomes is missing or damaged.
    """
    return Outcomes.of_table(evaluations.read_outcomes(lake, one.name, one.outcomes), one.state)


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], at: str = "") -> list[str]:
    """Return the settings in which two protocols differ, with both values."""
    found = []
    for key in sorted(mine.keys() | theirs.keys()):
        first, second = mine.get(key), theirs.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{at}{key}.")
        elif first != second:
            found.append(f"{at}{key} is {_short(first)} and {_short(second)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
