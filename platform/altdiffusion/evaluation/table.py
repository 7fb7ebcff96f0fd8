"""The table of retrieval accuracy by state and language, as Markdown, text and JSON, and its thresholds."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.retrieval_accuracy import ENGLISH, NAMES, Change, StateScore
from altdiffusion.evaluation.statistics import LEVEL, Difference, Rate
from altdiffusion.languages import in_order, named_language

Rows = list[list[str]]


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

    @property
    def final(self) -> StateScore:
        return self.states[-1]

    @property
    def chance(self) -> float:
        return 1 / self.final.concepts

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
        }

    def to_markdown(self) -> str:
        """Return all tables with intervals as Markdown."""
        tables = [f"### {title}\n\n{_markdown(rows)}" for title, rows in self._tables()]
        return "\n\n".join(["## Retrieval accuracy", self._about(), *tables]) + "\n"

    def to_text(self) -> str:
        """Return all tables with intervals as text for a terminal."""
        return "\n\n".join([self._about(), *(f"{title}\n{_aligned(rows)}" for title, rows in self._tables())]) + "\n"

    def _about(self) -> str:
        return (
            f"{self.final.concepts} concepts, chance {_percent(self.chance)}; in brackets: {LEVEL:.0%} interval "
            "(Wilson; concepts are the independent observations). Held out: this name was not in the training data."
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
            (f"Names seen and held out, {self.final.state}", self._by_names()),
        ]
        if self.changes:
            last = self.changes[-1]
            tables.append(("Change from state to state", self._by_change()))
            tables.append((f"Change by language, {last.first} to {last.second}", _change_by_language(last)))
        if self.judges:
            tables.append(("By judge", self._by_judge()))
        if self.controls:
            controls = [[name, _interval(rate), f"{rate.total:,}"] for name, rate in self.controls.items()]
            tables.append(("Controls", [["control", "named right", "images"], *controls]))
        return tables

    def _by_state(self) -> Rows:
        count = len([code for code in self.final.languages["all"] if code != ENGLISH])
        others = f"mean of {count} others"
        rows = [["state", "English", others, "of English", "lowest", "seen names", "held-out names"]]
        for state in self.states:
            lowest = state.lowest
            rows.append(
                [
                    state.state,
                    _interval(state.english),
                    _interval(state.others.get("all")),
                    _factor(state.ratio),
                    "-" if lowest is None else f"{_percent(lowest[1].value)} {lowest[0]}",
                    _share(state.others.get("seen")),
                    _share(state.others.get("held out")),
                ]
            )
        return rows

    def _by_language(self) -> Rows:
        rows = [["language", *(state.state for state in self.states)]]
        for code in self._languages:
            rates = [state.languages["all"].get(code) for state in self.states]
            shown = [_share(rate) for rate in rates[:-1]] + [_interval(rates[-1])]
            rows.append([named_language(code), *shown])
        return rows

    def _by_names(self) -> Rows:
        rows = [["language", *NAMES]]
        for code in self._languages:
            rates = [self.final.languages[names].get(code) for names in NAMES]
            shown = [f"{_share(rate)} of {rate.total}" if rate is not None else "-" for rate in rates]
            rows.append([named_language(code), *shown])
        return rows

    def _by_change(self) -> Rows:
        rows = [["from", "to", "English", "p", "mean of others", "p"]]
        for one in self.changes:
            english = one.languages.get(ENGLISH)
            rows.append(
                [one.first, one.second, _points(english), _p_of(english), _points(one.others), _p_of(one.others)]
            )
        return rows

    def _by_judge(self) -> Rows:
        rows = [["judge seed", *(state.state for state in self.states)]]
        for seed, rates in self.judges.items():
            rows.append([str(seed), *(_interval(rates.get(state.state)) for state in self.states)])
        return rows

    @property
    def _languages(self) -> list[str]:
        return in_order(code for state in self.states for code in state.languages["all"])


def _change_by_language(change: Change) -> Rows:
    rows = [["language", "change in points", "p", "p after Holm"]]
    for code, difference in change.languages.items():
        rows.append([named_language(code), _points(difference), _p_of(difference), _p(change.corrected[code])])
    return rows


def require(
    report: Report,
    *,
    min_mean: float = 0.0,
    min_ratio: float = 0.0,
    min_lowest_ratio: float = 0.0,
    min_concepts: int = 1,
) -> None:
    """Check the last state against thresholds.

    Args:
        min_mean: least mean over the other languages.
        min_ratio: least ratio of that mean to English.
        min_lowest_ratio: least ratio of the lowest language to English.
        min_concepts: least number of concepts; fewer do not prove anything.

    Raises:
        AltDiffusionError: a threshold is missed; the error names all that are.
    """
    state = report.final
    english, lowest = state.english, state.lowest
    if english is None or lowest is None:
        raise AltDiffusionError(
            f"evaluation of {state.state}",
            "lacks English or another language",
            "evaluate prompts in several languages",
        )
    mean = state.others["all"].value
    reference = f"with English at {_percent(english.value)}"
    missed = []
    if state.concepts < min_concepts:
        missed.append(f"{state.concepts} concepts, required at least {min_concepts}")
    if mean < min_mean:
        missed.append(f"a mean of {_percent(mean)} over the other languages, required at least {_percent(min_mean)}")
    if mean < min_ratio * english.value:
        missed.append(f"a mean of {_percent(mean)} {reference}, required at least {min_ratio:.2f} of English")
    code, rate = lowest
    if rate.value < min_lowest_ratio * english.value:
        missed.append(
            f"{named_language(code)} at {_percent(rate.value)} {reference}, "
            f"required at least {min_lowest_ratio:.2f} of English"
        )
    if missed:
        raise AltDiffusionError(
            f"evaluation of {state.state}",
            "; ".join(missed),
            "train longer, or check the table for what is missing",
        )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share(rate: Rate | None) -> str:
    return "-" if rate is None else _percent(rate.value)


def _interval(rate: Rate | None) -> str:
    return "-" if rate is None else f"{_percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _factor(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _p_of(difference: Difference | None) -> str:
    return "-" if difference is None else _p(difference.p)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(rows: Rows) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    marks = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join([lines[0], f"| {' | '.join(marks)} |", *lines[1:]])


def _aligned(rows: Rows) -> str:
    widths = [max(_columns(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [_pad(cell, width, left=i == 0) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _columns(text))
    return text + space if left else space + text
