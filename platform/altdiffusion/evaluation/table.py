"""The report of an evaluation: its tables by state and language, as Markdown, text and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.evaluation.cells import (
    Rows,
    aligned,
    factor,
    interval,
    markdown,
    p_of,
    p_value,
    percent,
    points,
    share,
)
from altdiffusion.evaluation.retrieval_accuracy import ENGLISH, NAMES, Change, Names, StateScore
from altdiffusion.evaluation.statistics import LEVEL, Rate
from altdiffusion.evaluation.variety import Variety
from altdiffusion.languages import in_order, named_language


@dataclass(frozen=True, kw_only=True)
class JudgeFacts:
    """What the judges learned from, and what they answer with."""

    images: int
    """Distinct real images."""
    learned: int
    """Classes: concepts that these images show."""
    answers: int
    """Classes that are answers: concepts of the cases."""
    side: int
    """Height and width of the images that the judges read, in pixels."""

    def to_json(self) -> dict[str, int]:
        return {"images": self.images, "learned": self.learned, "answers": self.answers, "side": self.side}

    def __str__(self) -> str:
        return (
            f"The judges learned {self.learned:,} concepts from {self.images:,} real images at {self.side} pixels and "
            f"answer with {self.answers:,} of them, the cases'"
        )


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What a state reached with one value of a setting of the sampler."""

    setting: str
    value: float
    score: StateScore
    """What the state reached, under its own name."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The complete result of an evaluation."""

    states: Sequence[StateScore]
    """The states in the order of the recipe; the last one is the evaluated model."""
    controls: Mapping[str, Rate] = field(default_factory=dict)
    """Rates by name that the measure gives where the answer is known."""
    changes: Sequence[Change] = ()
    """What each state gained or lost against the one before it."""
    judges: Mapping[int, Mapping[str, Rate]] = field(default_factory=dict)
    """Where there are several judges: by a judge's seed, the share of all images of each state that it found right."""
    judge: JudgeFacts | None = None
    variety: Mapping[str, Variety] = field(default_factory=dict)
    """Memorisation and diversity, by state."""
    sweep: Sequence[SweepRow] = ()
    """The points of a sweep, for the tables alone: the stored evaluation keeps them apart (jobs.cards)."""
    warnings: Sequence[str] = ()
    """What limits the meaning of the figures."""

    @property
    def final(self) -> StateScore:
        return self.states[-1]

    @property
    def chance(self) -> float:
        return 1 / (self.final.concepts if self.judge is None else self.judge.answers)

    def to_json(self) -> dict[str, Any]:
        return {
            "level": LEVEL,
            "chance": self.chance,
            "states": [state.to_json() for state in self.states],
            "controls": {name: rate.to_json() for name, rate in self.controls.items()},
            "changes": [change.to_json() for change in self.changes],
            "judges": {
                str(seed): {state: rate.to_json() for state, rate in rates.items()}
                for seed, rates in self.judges.items()
            },
            "judge": None if self.judge is None else self.judge.to_json(),
            "variety": {state: one.to_json() for state, one in self.variety.items()},
            "warnings": list(self.warnings),
        }

    def to_markdown(self) -> str:
        """Return all tables with intervals as Markdown."""
        tables = [f"### {title}\n\n{markdown(rows)}" for title, rows in self._tables()]
        return "\n\n".join(["## Retrieval accuracy", self._about(), *self._warned("**Warning.**"), *tables]) + "\n"

    def to_text(self) -> str:
        """Return all tables with intervals as text for a terminal."""
        tables = [f"{title}\n{aligned(rows)}" for title, rows in self._tables()]
        return "\n\n".join([self._about(), *self._warned("Warning."), *tables]) + "\n"

    def _warned(self, mark: str) -> list[str]:
        return [f"{mark} {text}" for text in self.warnings]

    def _about(self) -> str:
        return (
            f"{self.final.concepts} concepts, chance {percent(self.chance)}; in brackets: {LEVEL:.0%} interval "
            "(Wilson; concepts are the independent observations). Held out: this name was not in the training data."
            + (f" {self.judge}." if self.judge is not None else "")
            + (
                " Known from text: the text encoder learned this name from parallel text, and no image was learned "
                "with it in that language."
                if self._has_text
                else ""
            )
            + (
                " Changes are paired: the same prompts and noise; p by the exact sign test over concepts, "
                "by language after Holm's correction."
                if self.changes
                else ""
            )
        )

    def _tables(self) -> list[tuple[str, Rows]]:
        tables = [
            ("By state", self._by_state()),
            ("By language", self._by_language()),
            (f"Names {', '.join(self._shown_names[1:-1])} and held out, {self.final.state}", self._by_names()),
        ]
        if self.changes:
            last = self.changes[-1]
            tables.append(("Change from state to state", self._by_change()))
            tables.append((f"Change by language, {last.first} to {last.second}", _change_by_language(last)))
        if self.sweep:
            tables.append(("Sweeps", self._by_setting()))
        if self.judges:
            tables.append(("By judge", self._by_judge()))
        if self.controls:
            controls = [[name, interval(rate), f"{rate.total:,}"] for name, rate in self.controls.items()]
            tables.append(("Controls", [["control", "named right", "images"], *controls]))
        if self.variety:
            tables.append(("Memorisation and diversity", self._by_variety()))
        return tables

    @property
    def _has_text(self) -> bool:
        return any(state.languages.get("text") for state in self.states)

    @property
    def _shown_names(self) -> list[Names]:
        return [names for names in NAMES if names != "text" or self._has_text]

    def _by_state(self) -> Rows:
        count = len([code for code in self.final.languages["all"] if code != ENGLISH])
        others = f"mean of {count} others"
        text = ["names known from text", "of seen names"] if self._has_text else []
        rows = [["state", "English", others, "of English", "lowest", "seen names", *text, "held-out names"]]
        for state in self.states:
            lowest = state.lowest
            rows.append(
                [
                    state.state,
                    interval(state.english),
                    interval(state.others.get("all")),
                    factor(state.ratio),
                    "-" if lowest is None else f"{percent(lowest[1].value)} {lowest[0]}",
                    interval(state.others.get("seen")),
                    *([interval(state.others.get("text")), factor(state.text_to_pictures)] if text else []),
                    interval(state.others.get("held out")),
                ]
            )
        return rows

    def _by_language(self) -> Rows:
        rows = [["language", *(state.state for state in self.states)]]
        for code in self._languages:
            rates = [state.languages["all"].get(code) for state in self.states]
            shown = [share(rate) for rate in rates[:-1]] + [interval(rates[-1])]
            rows.append([named_language(code), *shown])
        return rows

    def _by_names(self) -> Rows:
        rows = [["language", *self._shown_names]]
        for code in self._languages:
            rates = [self.final.languages[names].get(code) for names in self._shown_names]
            shown = [f"{share(rate)} of {rate.total}" if rate is not None else "-" for rate in rates]
            rows.append([named_language(code), *shown])
        return rows

    def _by_change(self) -> Rows:
        rows = [["from", "to", "English", "p", "mean of others", "p"]]
        for one in self.changes:
            english = one.languages.get(ENGLISH)
            rows.append([one.first, one.second, points(english), p_of(english), points(one.others), p_of(one.others)])
        return rows

    def _by_setting(self) -> Rows:
        rows = [["setting", "value", "state", "English", "mean of others", "seen names", "held-out names"]]
        for one in self.sweep:
            others = [interval(one.score.others.get(names)) for names in ("all", "seen", "held out")]
            rows.append([one.setting, f"{one.value:g}", one.score.state, interval(one.score.english), *others])
        return rows

    def _by_judge(self) -> Rows:
        rows = [["judge seed", *(state.state for state in self.states)]]
        for seed, rates in self.judges.items():
            rows.append([str(seed), *(interval(rates.get(state.state)) for state in self.states)])
        return rows

    def _by_variety(self) -> Rows:
        title = ["near copies", "nearest training image", "over seeds", "over languages", "absent"]
        rows = [["state", *title]]
        for state, one in self.variety.items():
            nearest = "-" if one.nearest is None else f"{one.nearest:.3f}"
            figures = [interval(one.near_copies), nearest, factor(one.seeds), factor(one.languages)]
            rows.append([state, *figures, "; ".join(one.absent) or "-"])
        return rows

    @property
    def _languages(self) -> list[str]:
        return in_order(code for state in self.states for code in state.languages["all"])


def _change_by_language(change: Change) -> Rows:
    rows = [["language", "change in points", "p", "p after Holm"]]
    for code, difference in change.languages.items():
        rows.append([named_language(code), points(difference), p_of(difference), p_value(change.corrected[code])])
    return rows
