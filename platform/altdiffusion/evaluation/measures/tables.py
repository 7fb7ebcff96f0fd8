"""Measured values as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altdiffusion.evaluation.measures.estimate import LEVEL, Estimate
from altdiffusion.evaluation.measures.measure import MEAN, Measured
from altdiffusion.languages import BY_CODE

States = Mapping[str, Mapping[str, Measured]]
"""State -> measure -> values."""
_BETTER = {"fid": "lower", "kid": "lower", "cmmd": "lower"}
_DIGITS = {"fid": 2, "kid": 5, "cmmd": 3, "is": 2}


def to_json(states: States, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all states, and what they were measured with (`about`)."""
    measured = {state: {name: one.to_json() for name, one in by.items()} for state, by in states.items()}
    return {"level": LEVEL, "about": dict(about), "states": measured}


def to_markdown(states: States, about: Mapping[str, str]) -> str:
    """Return one table per measure: a row per language, a column per state."""
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    head = f"## Measures\n\nIn brackets: {LEVEL:.0%} interval.\n\n{facts}"
    names = dict.fromkeys(name for by in states.values() for name in by)
    return "\n\n".join([head, *(_table(name, states) for name in names)]) + "\n"


def _table(name: str, states: States) -> str:
    columns = {state: by[name] for state, by in states.items() if name in by}
    codes = dict.fromkeys(code for one in columns.values() for code in one.languages)
    rows: list[Sequence[str]] = [["language", *columns], ["---", *["---:"] * len(columns)]]
    for code in codes:
        label = f"{code} {BY_CODE[code].name}" if code in BY_CODE else code
        rows.append([label, *(_shown(name, one.languages.get(code)) for one in columns.values())])
    rows.append([MEAN, *(_shown(name, one.mean) for one in columns.values())])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"### {name} ({_BETTER.get(name, 'higher')} is better)\n\n{lines}"


def _shown(name: str, one: Estimate | None) -> str:
    if one is None:
        return "-"
    digits = _DIGITS.get(name, 3)
    interval = "" if one.low is None else f" [{one.low:.{digits}f}, {one.high:.{digits}f}]"
    return f"{one.value:.{digits}f}{interval} of {one.rows:,}"
