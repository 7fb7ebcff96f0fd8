"""Two models compared by the evaluations that a lake keeps of them, case by case where the protocols are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.evaluation.gate import Measured, differences, measured, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import Change, change
from altdiffusion.languages import named_language


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two evaluations, one of each model."""

    a: Measured
    b: Measured
    change: Change | None
    """From A to B; None where the protocols differ."""
    reasons: tuple[str, ...] = ()
    """The settings in which the protocols differ, with both values."""

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a.name,
            "b": self.b.name,
            "change": None if self.change is None else self.change.to_json(),
            "protocols_differ": list(self.reasons),
        }

    def lines(self) -> list[str]:
        """Return lines for people: one per language."""
        if self.change is None:
            return [f"{self.a.name} | {self.b.name}: cannot be compared, {'; '.join(self.reasons)}"]
        out = [f"{self.a.name} | {self.b.name}, accuracy of B minus A:"]
        for code, one in self.change.languages.items():
            out.append(
                f"  {named_language(code):<16} {100 * one.value:+6.1f} points [{100 * one.low:+.1f}, "
                f"{100 * one.high:+.1f}]   p {self.change.corrected[code]:.3g}"
            )
        return out


def compare(lake: str, a: Sequence[str], b: Sequence[str]) -> list[Compared]:
    """Return the comparisons of two models: of equal protocols if there are any, else of the first evaluations.

    Args:
        a: content digests of the model folders of the first one, such as its exports.
        b: those of the second one.

    Raises:
        AltDiffusionError: the file of an evaluation is damaged.
    """
    mine = [one for content in dict.fromkeys(a) for one in measured(lake, content)]
    theirs = [one for content in dict.fromkeys(b) for one in measured(lake, content)]
    pairs = [(one, other) for one in mine for other in theirs if one.protocol == other.protocol]
    found = [
        Compared(a=one, b=other, change=change("a", outcomes_of(lake, one), "b", outcomes_of(lake, other)))
        for one, other in pairs
    ]
    if not pairs and mine and theirs:
        one, other = mine[0], theirs[0]
        found.append(Compared(a=one, b=other, change=None, reasons=tuple(differences(one.protocol, other.protocol))))
    return found
