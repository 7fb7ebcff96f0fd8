"""Constraints on config fields: what passes, what is named, and by which key."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.config import from_dict, operational
from altdiffusion.constraints import (
    PROBABILITY,
    SHA256,
    Checked,
    Constraint,
    Invalid,
    at_least,
    between,
    each,
    exactly_one,
    from_below,
    matching,
    multiple_of,
    not_empty,
    one_of,
    positive,
    together,
    unique,
)
from altdiffusion.errors import AltDiffusionError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner(Checked):
    side: Annotated[int, multiple_of(8)] = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Checked):
    rows: Annotated[int, at_least(1)] = 10
    rate: Annotated[float | None, positive()] = None
    languages: Annotated[tuple[str, ...], not_empty("name one"), unique("language")] = ("en",)
    shares: Annotated[dict[str, float], each(PROBABILITY)] = field(default_factory=dict)
    widths: Annotated[tuple[int, ...], each(at_least(1))] = ()
    digest: Annotated[str | None, SHA256] = operational(None)
    inner: Inner = Inner()

    def conflicts(self) -> Iterator[Invalid]:
        if self.rows > self.inner.side:
            yield Invalid("inner.side", "is less than rows", "give more")
        yield from together(self, "rate", "digest")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "key rows: value 0 must be at least 1. Remedy: give 1 or more"),
        ({"rate": 0.0}, "key rate: value 0.0 must be positive. Remedy: give a number above 0"),
        ({"languages": []}, "key languages: value () is empty. Remedy: name one"),
        ({"languages": ["en", "en"]}, "contains the same language twice"),
        ({"shares": {"en": 0.5, "de": 1.5}}, "key shares.de: value 1.5 must be between 0 and 1"),
        ({"widths": [4, 0]}, "key widths.1: value 0 must be at least 1"),
        ({"digest": "abc"}, "key digest: value 'abc' is not 64 hex digits. Remedy: give the output of sha256sum"),
        ({"inner": {"side": 12}}, "key inner.side: value 12 is not a multiple of 8"),
        ({"rows": 300}, "key inner.side: value 256 is less than rows. Remedy: give more"),
        ({"rate": 1.0}, "key digest: value None and rate belong together. Remedy: give both or neither"),
    ],
)
def test_what_is_wrong_is_named_by_its_own_key_with_its_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        from_dict(Config, values, "job.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("config job.yaml, key ")


def test_none_passes_every_constraint_and_direct_construction_is_checked_too() -> None:
    assert Config(rate=None, digest=None).digest is None
    with pytest.raises(Invalid, match="rows: must be at least 1; give 1 or more") as caught:
        Config(rows=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.key, again.problem, again.remedy) == ("rows", "must be at least 1", "give 1 or more")
    assert pickle.loads(pickle.dumps(Config(rows=3))) == Config(rows=3)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (at_least(1), (1, 2), (0, -1)),
        (positive(), (1e-9, 3), (0, -1.0)),
        (between(0, 12), (0, 12), (-1, 13)),
        (from_below(0, 1), (0, 0.999), (1, -0.1)),
        (multiple_of(8), (8, 512), (0, 4, -8, 12)),
        (one_of(("en", "de")), ("en",), ("", "EN")),
        (matching(r"[a-z]+", "x", "y"), ("abc",), ("", "abc\n", "aB")),
        (not_empty("x"), ((1,), "a", {"a": 1}), ((), "", {})),
        (unique("name"), ((), ("a", "b")), (("a", "a"),)),
    ],
)
def test_the_edges_of_each_constraint(
    constraint: Constraint, good: tuple[object, ...], bad: tuple[object, ...]
) -> None:
    assert [list(constraint.check("key", value)) for value in good] == [[]] * len(good)
    assert all(len(list(constraint.check("key", value))) == 1 for value in bad)


@given(st.integers(), st.integers())
def test_not_a_number_and_every_integer_fall_on_one_side(low: int, value: int) -> None:
    assert (not list(at_least(low).check("key", value))) == (value >= low)
    assert list(at_least(low).check("key", float("nan"))) and list(positive().check("key", float("nan")))


def test_exactly_one_of_two_fields() -> None:
    @dataclass
    class Pair:
        first: str | None
        second: str | None

    assert not list(exactly_one(Pair("a", None), "first", "second", "give one"))
    for wrong in (Pair(None, None), Pair("a", "b")):
        (found,) = exactly_one(wrong, "first", "second", "give one")
        assert str(found) == "first: exactly one of first and second must be given; give one"
