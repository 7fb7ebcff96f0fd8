"""Retrieval accuracy against numbers worked out by hand, and the tables made of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.retrieval_accuracy import Case, Rate, rate_of, read_cases, score, select_cases, shuffled
from altdiffusion.evaluation.table import Report, require

CONCEPTS = [f"c{i:03d}" for i in range(100)]
CODES = ("en", "de", "ja")


def cases(held_out_every: int = 10) -> list[Case]:
    return [
        Case(concept=concept, language=code, seen=code == "en" or i % held_out_every != 0)
        for i, concept in enumerate(CONCEPTS)
        for code in CODES
    ]


def named(wrong: dict[str, set[int]]) -> np.ndarray:
    """Return the answers of a judge that errs at these concepts of a language."""
    return np.array([
        "c999" if i in wrong.get(code, ()) else concept for i, concept in enumerate(CONCEPTS) for code in CODES
    ])  # fmt: skip


WRONG = {"en": set(range(10)), "de": set(range(0, 40, 2)), "ja": set(range(60))}  # 90 %, 80 %, 40 %


def test_rates_are_the_counted_ones() -> None:
    result = score("final", named(WRONG), cases())
    rates = {code: rate.value for code, rate in result.languages["all"].items()}
    assert rates == {"en": 0.9, "de": 0.8, "ja": 0.4}
    assert result.concepts == 100
    assert result.others["all"].value == pytest.approx(0.6)
    assert result.others["all"].total == 200
    assert result.ratio is not None
    assert result.ratio.value == pytest.approx(0.6 / 0.9)
    assert result.lowest[0] == "ja"
    # Held out are concepts 0, 10, ... 90: German errs at 0, 10, 20, 30, Japanese at 0 ... 50.
    assert result.languages["held out"]["de"].value == pytest.approx(0.6)
    assert result.languages["held out"]["de"].total == 10
    assert result.languages["held out"]["ja"].value == pytest.approx(0.4)
    assert "en" not in result.languages["held out"]
    assert result.languages["seen"]["de"].value == pytest.approx((80 - 6) / 90)
    assert result.others["held out"].value == pytest.approx(0.5)


def test_the_interval_is_that_of_a_binomial() -> None:
    rate = score("final", named(WRONG), cases()).languages["all"]["de"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 100)
    assert rate.low == pytest.approx(0.8 - half, abs=0.025)
    assert rate.high == pytest.approx(0.8 + half, abs=0.025)


def test_languages_that_fail_together_leave_the_mean_as_uncertain_as_one() -> None:
    """Concepts are resampled for all languages at once: agreeing languages add no evidence."""
    together = score("x", named({"de": set(range(50)), "ja": set(range(50))}), cases()).others["all"]
    apart = score("x", named({"de": set(range(50)), "ja": set(range(50, 100))}), cases()).others["all"]
    assert together.high - together.low > 0.15
    assert apart.high - apart.low < 0.01


def test_the_report_is_the_same_each_time() -> None:
    assert score("x", named(WRONG), cases()) == score("x", named(WRONG), cases())
    assert score("x", named(WRONG), cases(), seed=1) != score("x", named(WRONG), cases(), seed=2)


def test_shuffled_captions_leave_chance() -> None:
    assert shuffled(named({}), cases()).value == 0.0  # no caption keeps its image
    blind = np.full(300, CONCEPTS[7])
    assert shuffled(blind, cases()).value == pytest.approx(0.01)  # one concept in a hundred, whatever the order


def test_a_plain_rate_counts_images_but_resamples_concepts() -> None:
    right = np.repeat(np.arange(10) < 7, 50)
    rate = rate_of(right, np.repeat(np.arange(10), 50))
    assert (rate.value, rate.total) == (0.7, 500)
    assert rate.high - rate.low > 0.4  # ten independent things, not five hundred


def report() -> Report:
    weak = {"en": set(range(20)), "de": set(range(95)), "ja": set(range(100))}
    return Report(
        states=[score("base", named(weak), cases()), score("after guidance", named(WRONG), cases())],
        controls={"real pictures through the codec": Rate(value=0.995, low=0.99, high=1.0, total=400)},
    )


def test_the_tables_show_every_number() -> None:
    markdown, text = report().to_markdown(), report().to_text()
    for shown in (markdown, text):
        for part in ("90.0 %", "80.0 %", "40.0 %", "60.0 %", "0.67 [", "40.0 % ja", "99.5 %", "held-out names",
                     "after guidance", "ja Japanese", "chance 1.0 %", "60.0 % of 10"):  # fmt: skip
            assert part in shown
    assert "| base |" in markdown
    lines = text.splitlines()
    table = lines[lines.index("By language") + 1 :][:5]
    assert len({line.rstrip().rfind("]") for line in table[2:]}) == 1  # columns are aligned
    loaded = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert loaded["states"][1]["languages"]["all"]["de"]["value"] == 0.8


def test_thresholds() -> None:
    require(report(), min_mean=0.6, min_ratio=0.66, min_lowest_ratio=0.44, min_concepts=100)
    for missed, problem in (
        ({"min_mean": 0.61}, "a mean of 60.0 % over the other languages, required at least 61.0 %"),
        ({"min_ratio": 0.7}, "English at 90.0 %, required at least 0.70 of English"),
        ({"min_lowest_ratio": 0.5}, "Japanese at 40.0 % with English at 90.0 %, required at least 0.50"),
        ({"min_concepts": 101}, "100 concepts, required at least 101"),
    ):
        with pytest.raises(AltDiffusionError, match="evaluation of after guidance") as caught:
            require(report(), **missed)  # type: ignore[arg-type]
        assert problem in caught.value.problem


def test_a_model_that_never_draws_right_is_reported_too() -> None:
    nothing = score("x", np.full(300, "none"), cases())
    assert nothing.ratio is None
    assert nothing.others["all"].value == 0.0
    assert "-" in Report(states=[nothing]).to_text()
    with pytest.raises(AltDiffusionError):
        require(Report(states=[nothing]), min_mean=0.1)


def test_cases_file(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    row = {"id": "a-en", "language": "en", "concept": "a", "seen": True, "prompt": "x"}
    path.write_text(json.dumps(row) + "\n")
    found = read_cases(str(path))
    assert select_cases(found, ["a-en"]) == [Case(concept="a", language="en", seen=True)]
    with pytest.raises(AltDiffusionError, match="prompt b-en: is not in the cases file"):
        select_cases(found, ["b-en"])
    for bad in ("{", json.dumps(row | {"seen": "yes"}), json.dumps(row | {"language": "xx"}), "[]", json.dumps(row)):
        path.write_text(json.dumps(row) + "\n" + bad + "\n")
        with pytest.raises(AltDiffusionError, match="row 2"):
            read_cases(str(path))
    with pytest.raises(AltDiffusionError, match="does not exist"):
        read_cases(str(tmp_path / "none.jsonl"))
