"""What a config's fields may hold: constraints on one field, written with its type, and rules across several.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class CropConfig(Checked):
        side: Annotated[int, at_least(1), multiple_of(8)] = 256
        stride: Annotated[int | None, at_least(1)] = None

        def conflicts(self) -> Iterator[Invalid]:
            if self.stride is not None and self.stride > self.side:
                yield Invalid("stride", "is more than side, which leaves gaps", "give at most side")

A constraint on a list or mapping with `each` holds for every item. None always passes: it means "not given".
"""

from __future__ import annotations

import functools
import itertools
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class Invalid(ValueError):
    """A field of a config cannot hold its value.

    Args:
        key: the field, dotted where it is inside another one.
        problem: what is wrong with its value.
        remedy: what to write instead.

    Attributes:
        value: the value of the field; `Checked` fills it in.
    """

    def __init__(self, key: str, problem: str, remedy: str, value: Any = None) -> None:
        super().__init__(key, problem, remedy, value)  # all in args: it pickles
        self.key, self.problem, self.remedy, self.value = key, problem, remedy, value

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.remedy}"


@dataclass(frozen=True)
class Constraint:
    """A condition on one value; `problem` and `remedy` are given where it does not hold."""

    holds: Callable[[Any], bool]
    problem: str
    remedy: str

    def check(self, key: str, value: Any) -> Iterator[Invalid]:
        """Yield what is wrong with a value, if anything."""
        if not self.holds(value):
            yield Invalid(key, self.problem, self.remedy)


@dataclass(frozen=True)
class Each:
    """A constraint on every item of a list, or every value of a mapping."""

    item: Constraint

    def check(self, key: str, value: Any) -> Iterator[Invalid]:
        """Yield what is wrong with each item, by the item's own key."""
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from self.item.check(f"{key}.{name}", item)


def at_least(low: float, remedy: str = "") -> Constraint:
    """Return the constraint value >= low."""
    return Constraint(lambda value: value >= low, f"must be at least {low}", remedy or f"give {low} or more")


def positive(remedy: str = "give a number above 0") -> Constraint:
    """Return the constraint value > 0, for numbers that need not be whole."""
    return Constraint(lambda value: value > 0, "must be positive", remedy)


def between(low: float, high: float, remedy: str = "") -> Constraint:
    """Return the constraint low <= value <= high."""
    return Constraint(
        lambda value: low <= value <= high,
        f"must be between {low} and {high}",
        remedy or f"give a number from {low} to {high}",
    )


def from_below(low: float, high: float, remedy: str = "") -> Constraint:
    """Return the constraint low <= value < high."""
    return Constraint(
        lambda value: low <= value < high,
        f"must be at least {low} and below {high}",
        remedy or f"give a number from {low} to below {high}",
    )


def multiple_of(step: int, remedy: str = "") -> Constraint:
    """Return the constraint that value is a positive multiple of step."""
    return Constraint(
        lambda value: value >= step and value % step == 0,
        f"is not a multiple of {step}",
        remedy or f"give a multiple of {step}",
    )


def one_of(choices: Collection[str], remedy: str = "") -> Constraint:
    """Return the constraint that value is one of some names that no Literal can list."""
    return Constraint(
        lambda value: value in choices, "is not one of the choices", remedy or f"use one of {', '.join(choices)}"
    )


def matching(pattern: str | re.Pattern[str], problem: str, remedy: str) -> Constraint:
    """Return the constraint that the whole text matches a regular expression."""
    compiled = re.compile(pattern)
    return Constraint(lambda value: compiled.fullmatch(value) is not None, problem, remedy)


def not_empty(remedy: str) -> Constraint:
    """Return the constraint that a list, mapping or text holds something."""
    return Constraint(bool, "is empty", remedy)


def unique(noun: str) -> Constraint:
    """Return the constraint that no item of a list occurs twice."""
    return Constraint(
        lambda value: len(set(value)) == len(value), f"contains the same {noun} twice", "name each one once"
    )


def each(item: Constraint) -> Each:
    """Return a constraint on every item of a list, or every value of a mapping."""
    return Each(item)


SHA256 = matching(r"[0-9a-f]{64}", "is not 64 hex digits", "give the output of sha256sum")
FOLDER_DIGEST = matching(r"[0-9a-f]{64}", "is not 64 hex digits", "give the folder's digest")
PROBABILITY = between(0, 1)
PLAIN_NAME = matching(
    r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}", "is not a valid name", "use up to 100 letters, digits, '.', '_' and '-'"
)
DATASET_NAME = matching(
    r"[a-z0-9][a-z0-9._\-]{0,99}",
    "is not a valid name of a dataset",
    "use up to 100 lower-case letters, digits, '.', '_' and '-', the first one a letter or digit",
)


class Checked:
    """Base of the config dataclasses: checks constraints, then rules across fields, whenever an instance is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            Invalid: the first field that is wrong.
        """
        for wrong in itertools.chain(_alone(self), self.conflicts()):
            raise Invalid(wrong.key, wrong.problem, wrong.remedy, _value_at(self, wrong.key))

    def conflicts(self) -> Iterator[Invalid]:
        """Yield what does not fit among several fields; each single field is valid by now."""
        return iter(())


def _alone(checked: Checked) -> Iterator[Invalid]:
    """Yield what is wrong with each single field."""
    for name, constraints in _constraints(type(checked)):  # type: ignore[arg-type]  # a class is hashable
        value = getattr(checked, name)
        for constraint in constraints if value is not None else ():
            yield from constraint.check(name, value)


def _value_at(value: Any, key: str) -> Any:
    """Return what is under a dotted key: in a section, a mapping or a list."""
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part, None)
    return value


@functools.cache
def _constraints(cls: Any) -> tuple[tuple[str, tuple[Constraint | Each, ...]], ...]:
    """Return the constraints of a class by field, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return tuple(
        (name, tuple(entry for entry in metadata if isinstance(entry, Constraint | Each)))
        for name, metadata in found.items()
        if metadata
    )


def together(checked: Any, first: str, second: str, remedy: str = "give both or neither") -> Iterator[Invalid]:
    """Yield what is wrong where only one of two fields that belong together is given."""
    if (getattr(checked, first) is None) != (getattr(checked, second) is None):
        yield Invalid(second, f"and {first} belong together", remedy)


def exactly_one(checked: Any, first: str, second: str, remedy: str) -> Iterator[Invalid]:
    """Yield what is wrong where both or neither of two fields are given."""
    if (getattr(checked, first) is None) == (getattr(checked, second) is None):
        yield Invalid(first, f"exactly one of {first} and {second} must be given", remedy)
