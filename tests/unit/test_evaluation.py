"""Retrieval accuracy against numbers worked out by hand, and the tables made of it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from altdiffusion.constraints import Invalid
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.outcomes import Case, Group, Outcomes, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import change, no_worse, rate_of, score, shuffled
from altdiffusion.evaluation.statistics import Rate
from altdiffusion.evaluation.table import Report
from altdiffusion.evaluation.thresholds import RequireConfig, StateThresholds, require

CONCEPTS = [f"c{i:03d}" for i in range(100)]
CODES = ("en", "de", "ja")


def cases(held_out_every: int = 10) -> list[Case]:
    return [
        Case(concept=concept, language=code, group="pictures" if code == "en" or i % held_out_every else "unseen")
        for i, concept in enumerate(CONCEPTS)
        for code in CODES
    ]


def answers(wrong: dict[str, set[int]]) -> np.ndarray:
    """Return the answers of a judge that errs at these concepts of a language."""
    return np.array([
        "c999" if i in wrong.get(code, ()) else concept for i, concept in enumerate(CONCEPTS) for code in CODES
    ])  # fmt: skip


def named(*wrong: dict[str, set[int]], asked: list[Case] | None = None) -> Outcomes:
    """Return the outcomes by one judge per set of errors."""
    by_id = {str(place): case for place, case in enumerate(asked or cases())}
    return outcomes_of(by_id, dict.fromkeys(by_id, 1), list(by_id), np.stack([answers(one) for one in wrong]))


WRONG = {"en": set(range(10)), "de": set(range(0, 40, 2)), "ja": set(range(60))}  # 90 %, 80 %, 40 %


def test_rates_are_the_counted_ones() -> None:
    result = score("final", named(WRONG))
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
    rate = score("final", named(WRONG)).languages["all"]["de"]
    # Wilson 1927 in its usual form, for 80 of 100.
    z, n = 1.959963984540054, 100
    middle, half = 0.8 + z**2 / (2 * n), z * math.sqrt(0.8 * 0.2 / n + z**2 / (4 * n**2))
    assert rate.low == pytest.approx((middle - half) / (1 + z**2 / n))
    assert rate.high == pytest.approx((middle + half) / (1 + z**2 / n))


def test_languages_that_fail_together_leave_the_mean_as_uncertain_as_one() -> None:
    """Concepts are the independent observations: agreeing languages add no evidence."""
    together = score("x", named({"de": set(range(50)), "ja": set(range(50))})).others["all"]
    apart = score("x", named({"de": set(range(50)), "ja": set(range(50, 100))})).others["all"]
    alone = score("x", named({"de": set(range(50)), "ja": set(range(50))})).languages["all"]["de"]
    assert (together.low, together.high) == (alone.low, alone.high)
    assert apart.high - apart.low == pytest.approx(0.137, abs=0.001)  # no less than that of 200 independent images


def test_all_right_is_not_certain() -> None:
    rate = score("x", named({})).languages["all"]["de"]
    assert (rate.value, rate.high) == (1.0, 1.0) and rate.low == pytest.approx(100 / (100 + 1.959964**2))
    others = score("x", named({})).others["all"]
    assert others.low == rate.low  # two languages that are all right show no more than one does


def test_the_outcome_of_a_case_is_the_mean_over_judges_and_images() -> None:
    by_id = {
        "a": Case(concept="cat", language="en", group="pictures"),
        "b": Case(concept="dog", language="en", group="pictures"),
    }
    named_by = np.array([["cat", "cat", "dog"], ["cat", "dog", "dog"]])
    found = outcomes_of(by_id, {"a": 2, "b": 2}, ["a", "a", "b"], named_by)
    assert found.right.tolist() == [0.75, 0.5]  # of two images of b one was not drawn, which counts as wrong
    again = Outcomes.of_table(found.table("x"), "x")
    assert again.cases == found.cases and (again.right == found.right).all()
    with pytest.raises(AltDiffusionError, match="hold no rows of state y"):
        Outcomes.of_table(found.table("x"), "y")


def test_a_change_is_counted_on_the_same_prompts() -> None:
    worse = {"en": {0}, "de": set(range(12)), "ja": set()}
    found = change("before", named({}), "after", named(worse))
    assert found.languages["de"].value == pytest.approx(-0.12)
    assert found.languages["de"].p == pytest.approx(2 * 0.5**12)  # McNemar: 12 of 12 that differ
    assert found.corrected["de"] == pytest.approx(3 * 2 * 0.5**12)
    assert (found.languages["ja"].value, found.languages["ja"].p) == (0.0, 1.0)
    assert found.languages["ja"].low < 0 < found.languages["ja"].high
    assert found.others is not None and found.others.value == pytest.approx(-0.06)
    tests = no_worse(named({}), named(worse), 0.05)
    assert tests["de"] == 1.0 and tests["ja"] < 0.05
    fewer = named({}, asked=[Case(concept=case.concept, language=case.language, group="pictures") for case in cases()])
    with pytest.raises(AltDiffusionError, match="states before and after: were measured on other cases"):
        change("before", named({}), "after", fewer)


def test_shuffled_captions_leave_chance() -> None:
    assert shuffled(answers({}), cases()).value == 0.0  # no caption keeps its image
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
        states=[score("base", named(weak)), score("after guidance", named(WRONG))],
        controls={"real pictures through the codec": Rate(value=0.995, low=0.99, high=1.0, total=400)},
        changes=[change("base", named(weak), "after guidance", named(WRONG))],
        judges={3: {"base": rate_of(np.array([1, 0]), np.array(["a", "b"]))}},
    )


def test_the_tables_show_every_number() -> None:
    markdown, text = report().to_markdown(), report().to_text()
    for shown in (markdown, text):
        for part in ("90.0 %", "80.0 %", "40.0 %", "60.0 %", "0.67 [", "40.0 % ja", "99.5 %", "held-out names",
                     "after guidance", "ja Japanese", "chance 1.0 %", "60.0 % of 10", "+10.0 [", "< 0.001",
                     "p after Holm", "judge seed", "50.0 %"):  # fmt: skip
            assert part in shown
    assert "| base |" in markdown
    lines = text.splitlines()
    table = lines[lines.index("By language") + 1 :][:5]
    assert len({line.rstrip().rfind("]") for line in table[2:]}) == 1  # columns are aligned
    loaded = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert loaded["states"][1]["languages"]["all"]["de"]["value"] == 0.8


def required(**settings: Any) -> RequireConfig:
    none = {"others_at_least": 0.0, "others_to_english_at_least": 0.0, "lowest_to_english_at_least": 0.0}
    return RequireConfig(**{**none, **settings})


def test_thresholds() -> None:
    require(report(), required(others_at_least=0.6, others_to_english_at_least=0.66, lowest_to_english_at_least=0.44))
    states = {"base": StateThresholds(at_most=0.1, group="unseen"), "after guidance": StateThresholds(at_least=0.6)}
    require(report(), required(states=states))
    for missed, problem in (
        ({"others_at_least": 0.61}, "a mean of 60.0 % over the other languages, required at least 61.0 %"),
        ({"others_to_english_at_least": 0.7}, "English at 90.0 %, required at least 0.70 of English"),
        ({"lowest_to_english_at_least": 0.5}, "ja Japanese at 40.0 % with English at 90.0 %, required at least 0.50"),
        ({"concepts_at_least": 101}, "100 concepts, required at least 101"),
        ({"states": {"after guidance": StateThresholds(at_least=0.7)}}, "a mean of 60.0 %, required at least 70.0 %"),
        (
            {"states": {"after guidance": StateThresholds(at_most=0.4, group="unseen")}},
            "a mean of 50.0 % over names of group unseen, required at most 40.0 %",
        ),
        (
            {"states": {"after guidance": StateThresholds(to_english_at_least=0.7, group="pictures")}},
            "group pictures with English at 90.0 %, required at least 0.70 of English",
        ),
    ):
        with pytest.raises(AltDiffusionError, match="evaluation of after guidance") as caught:
            require(report(), required(**missed))
        assert problem in caught.value.problem
    with pytest.raises(AltDiffusionError, match=r"evaluation of base: a mean of 2\.5 %, required at least 60\.0 %"):
        require(report(), required(states={"base": StateThresholds(at_least=0.6)}))
    with pytest.raises(Invalid, match="is missing, and so are the other thresholds"):
        StateThresholds()


def test_a_model_that_never_draws_right_is_reported_too() -> None:
    nothing = score("x", named({code: set(range(100)) for code in CODES}))
    assert nothing.ratio is None
    assert nothing.others["all"].value == 0.0
    assert "-" in Report(states=[nothing]).to_text()
    with pytest.raises(AltDiffusionError):
        require(Report(states=[nothing]), required(others_at_least=0.1))


@pytest.mark.parametrize("language", ["en", "ja", "sv"])
def test_cases_in_one_language_make_a_table(language: str) -> None:
    asked = [Case(concept=concept, language=language, group="pictures") for concept in CONCEPTS for _ in CODES]
    report = Report(states=[score("x", named(WRONG, asked=asked))])
    shown = report.to_markdown() + report.to_text() + json.dumps(report.to_json(), allow_nan=False)
    assert "70.0 %" in shown and "nan" not in shown
    with pytest.raises(AltDiffusionError, match="lacks English or another language"):
        require(report, required(others_at_least=0.1))


def test_groups_of_names_are_told_apart() -> None:
    """Every second German name is known from text alone; the Japanese ones of concepts 90 to 99 are unseen."""

    def group(code: str, place: int) -> Group:
        if code == "de" and place % 2:
            return "text"
        return "unseen" if code == "ja" and place >= 90 else "pictures"

    pairs = [(i, concept, code) for i, concept in enumerate(CONCEPTS) for code in CODES]
    asked = [Case(concept=concept, language=code, group=group(code, i)) for i, concept, code in pairs]
    outcomes = named({"de": {1, 3, 5, 7, 9, 0}, "ja": {99, 10}}, asked=asked)
    found = score("x", outcomes)
    assert found.languages["text"]["de"].value == pytest.approx(45 / 50) and "ja" not in found.languages["text"]
    assert found.others["seen"].value == pytest.approx((49 / 50 + 89 / 90) / 2)
    assert found.others["held out"].value == pytest.approx(9 / 10)
    assert found.text_to_pictures is not None
    assert found.text_to_pictures.value == pytest.approx(0.9 / found.others["seen"].value)
    assert found.text_to_pictures.low < found.text_to_pictures.value < found.text_to_pictures.high
    assert found.languages["seen"]["en"].value == 1.0  # English is apart from the mean of the others
    shown = Report(states=[found]).to_markdown()
    for part in ("| names known from text | of seen names | held-out names |", "90.0 % of 50", "0.91 ["):
        assert part in shown
    require(Report(states=[found]), required(text_to_pictures_at_least=0.9))
    with pytest.raises(
        AltDiffusionError, match=r"known from text at 0\.91 of those with images, required at least 0\.95"
    ):
        require(Report(states=[found]), required(text_to_pictures_at_least=0.95))
    table = outcomes.table("x")
    assert table["seen"].to_pylist() == [case.group == "pictures" for case in asked]
    assert Outcomes.of_table(table, "x").cases == asked
    before = Outcomes.of_table(table.drop_columns("group"), "x")  # as an earlier version wrote it
    assert {case.group for case in before.cases} == {"pictures", "unseen"}
    assert "known from text" not in Report(states=[score("x", before)]).to_markdown()
