"""Sweeps: what an evaluation draws besides, with one setting of the sampler at other values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from altdiffusion.constraints import Checked, Invalid, unique


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig(Checked):
    """Values of settings of `sampling`; each state draws all cases with each value, one setting at a time.

    The value of `sampling` itself is a point of every curve without being named: it is what the state draws anyway.
    """

    guidance_scale: Annotated[tuple[float, ...], unique("value")] = ()
    """Strengths of guidance that are drawn, at the usual number of steps."""
    steps: Annotated[tuple[int, ...], unique("value")] = ()
    """Numbers of steps that are drawn, at the usual guidance."""

    def conflicts(self) -> Iterator[Invalid]:
        if not self.guidance_scale and not self.steps:
            yield Invalid("guidance_scale", "is empty, and so is steps", "give values, or leave sweep out")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A set of images: what a state draws with one value of a setting."""

    name: str
    """Name of the set, unique in the evaluation; that of the state where the value is the one of `sampling`."""
    state: str
    setting: str
    value: float

    @property
    def change(self) -> dict[str, Any]:
        """The setting of `sampling` that differs; empty for the state's own set."""
        return {} if self.name == self.state else {self.setting: self.value}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "setting": self.setting, "value": self.value}


def points(sweep: SweepConfig | None, states: Sequence[str], guidance_scale: float, steps: int) -> list[Point]:
    """Return the points of all curves, by state and setting.

    Args:
        guidance_scale: the value of `sampling`.
        steps: the value of `sampling`.
    """
    if sweep is None:
        return []
    settings: list[tuple[str, str, float, tuple[float, ...]]] = [
        ("guidance_scale", "g", guidance_scale, sweep.guidance_scale),
        ("steps", "s", steps, sweep.steps),
    ]
    return [
        Point(name=state if value == own else f"{state}-{letter}{value:g}", state=state, setting=setting, value=value)
        for state in states
        for setting, letter, own, values in settings
        if values
        for value in sorted({own, *values})
    ]
