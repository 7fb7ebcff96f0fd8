"""The thresholds of an evaluation: what its states must reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import added
from altdiffusion.constraints import PROBABILITY, Checked, Invalid, at_least
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.cells import percent
from altdiffusion.evaluation.outcomes import GROUPS
from altdiffusion.evaluation.retrieval_accuracy import NAMES_OF, StateScore
from altdiffusion.evaluation.table import Report
from altdiffusion.languages import named_language

_NOT_NEGATIVE = at_least(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateThresholds(Checked):
    """What one state must reach, in the mean over the languages other than English."""

    at_least: Annotated[float | None, PROBABILITY] = None
    """Least mean accuracy."""
    at_most: Annotated[float | None, PROBABILITY] = None
    """Largest mean accuracy: what an ablation must not reach."""
    to_english_at_least: Annotated[float | None, _NOT_NEGATIVE] = None
    """Least mean accuracy divided by the same state's English accuracy."""
    group: Literal["all", "pictures", "text", "unseen"] = "all"
    """The names whose mean it is."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.at_least is None and self.at_most is None and self.to_english_at_least is None:
            yield Invalid("at_least", "is missing, and so are the other thresholds", "give at least one")
        if self.at_least is not None and self.at_most is not None and self.at_most < self.at_least:
            yield Invalid("at_most", f"is below at_least ({self.at_least:g})", "give at least as much")


@dataclass(frozen=True, kw_only=True, slots=True)
class RequireConfig(Checked):
    """What the last state must reach, and others by their names; otherwise the job fails."""

    others_at_least: float
    """Mean accuracy over the languages other than English."""
    others_to_english_at_least: float
    """That mean divided by the same state's English accuracy."""
    lowest_to_english_at_least: float
    """The lowest language's accuracy divided by English."""
    concepts_at_least: int = 100
    """Number of concepts below which the result proves nothing."""
    text_to_pictures_at_least: Annotated[float | None, _NOT_NEGATIVE] = added(None)
    """Mean accuracy of names known from text alone, divided by that of names learned with images."""
    states: dict[str, StateThresholds] | None = added(None)
    """By the name of a state, what it must reach."""

    @property
    def groups(self) -> list[str]:
        """The groups of names that the cases must have."""
        wanted = {one.group for one in (self.states or {}).values()} - {"all"}
        if self.text_to_pictures_at_least is not None:
            wanted |= {"text", "pictures"}
        return [group for group in GROUPS if group in wanted]


def require(report: Report, required: RequireConfig) -> None:
    """Check the last state against the thresholds, and the named states against theirs.

    Raises:
        AltDiffusionError: a threshold is missed; the error names all that are.
    """
    final = report.final
    missed = {final.state: list(_missed_by_final(final, required))}
    by_name = {state.state: state for state in report.states}
    for name, thresholds in (required.states or {}).items():
        missed.setdefault(name, []).extend(_missed(by_name[name], thresholds))
    found = {name: problems for name, problems in missed.items() if problems}
    if found:
        raise AltDiffusionError(
            f"evaluation of {' and '.join(found)}",
            "; ".join(
                problem if len(found) == 1 else f"{name}: {problem}"
                for name, problems in found.items()
                for problem in problems
            ),
            "train longer, or check the table for what is missing",
        )


def _missed_by_final(state: StateScore, required: RequireConfig) -> Iterator[str]:
    english, lowest = state.english, state.lowest
    if english is None or lowest is None:
        raise AltDiffusionError(
            f"evaluation of {state.state}",
            "lacks English or another language",
            "evaluate prompts in several languages",
        )
    mean = state.others["all"].value
    reference = f"with English at {percent(english.value)}"
    if state.concepts < required.concepts_at_least:
        yield f"{state.concepts} concepts, required at least {required.concepts_at_least}"
    if mean < required.others_at_least:
        yield (
            f"a mean of {percent(mean)} over the other languages, required at least {percent(required.others_at_least)}"
        )
    if mean < required.others_to_english_at_least * english.value:
        yield (
            f"a mean of {percent(mean)} {reference}, required at least "
            f"{required.others_to_english_at_least:.2f} of English"
        )
    code, rate = lowest
    if rate.value < required.lowest_to_english_at_least * english.value:
        yield (
            f"{named_language(code)} at {percent(rate.value)} {reference}, required at least "
            f"{required.lowest_to_english_at_least:.2f} of English"
        )
    least = required.text_to_pictures_at_least
    if least is not None:
        ratio = state.text_to_pictures
        if ratio is None:
            yield "no ratio of names known from text to names learned with images, because the latter were never right"
        elif ratio.value < least:
            yield f"names known from text at {ratio.value:.2f} of those with images, required at least {least:.2f}"


def _missed(state: StateScore, required: StateThresholds) -> Iterator[str]:
    names = "all" if required.group == "all" else NAMES_OF[required.group]
    mean = state.others[names].value
    shown = f"a mean of {percent(mean)}" + (f" over names of group {required.group}" if names != "all" else "")
    if required.at_least is not None and mean < required.at_least:
        yield f"{shown}, required at least {percent(required.at_least)}"
    if required.at_most is not None and mean > required.at_most:
        yield f"{shown}, required at most {percent(required.at_most)}"
    factor, english = required.to_english_at_least, state.english
    if factor is not None and english is not None and mean < factor * english.value:
        yield f"{shown} with English at {percent(english.value)}, required at least {factor:.2f} of English"
