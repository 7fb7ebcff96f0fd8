"""The gate: a checkpoint replaces the champion only where the paired test shows every language to hold its level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altdiffusion.cli import main
from altdiffusion.diffusion import models
from altdiffusion.evaluation.outcomes import Case, Outcomes
from altdiffusion.evaluation.retrieval_accuracy import score
from altdiffusion.evaluation.table import Report
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.settings import ModelConfig
from altdiffusion.storage import evaluations
from altdiffusion.storage.aliases import read_alias
from tests import training_lake

PROTOCOL = {"cases": "a" * 64, "sampling": {"steps": 50, "count": 1}, "judge": {"seed": 0}}
CODES = ("en", "th", "sv")


@pytest.fixture
def lake(tmp_path: Path) -> str:
    for seed, run in enumerate(("old", "new")):
        models.save_bundle(training_lake.bundle(seed), tmp_path / "lake" / "exports" / run / "step-00000001")
    return str(tmp_path / "lake")


def store(lake: str, run: str, name: str, wrong: dict[str, int], concepts: int = 400, **protocol: Any) -> None:
    """Store an evaluation in which the first so many concepts of a language were drawn wrong."""
    cases = [Case(concept=f"c{k}", language=code, group="pictures") for k in range(concepts) for code in CODES]
    right = [float(k >= wrong.get(code, 0)) for k in range(concepts) for code in CODES]
    found = Outcomes(
        ids=[f"{case.concept}-{case.language}" for case in cases],
        cases=cases,
        images=np.ones(len(cases), np.int64),
        right=np.array(right),
    )
    content = resolve_model(ModelConfig(run=run), lake).content
    report = Report(states=[score(run, found)]).to_json()
    evaluations.write(lake, name, report, {run: content}, protocol={**PROTOCOL, **protocol}, outcomes=found.table(run))


def promote(lake: str, run: str, *options: str) -> int:
    return main(["promote", run, "--to", "champion", "--lake", lake, *options])


def champion(lake: str) -> str | None:
    alias = read_alias(lake, "champion")
    return None if alias is None else alias.content


def test_the_first_champion_needs_no_test_and_the_next_one_does(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    store(lake, "old", "one", {"th": 20})
    assert promote(lake, "old", "--dry-run") == 0 and champion(lake) is None
    assert promote(lake, "old") == 0
    assert "there is no champion yet, so the first is accepted" in capsys.readouterr().out
    assert promote(lake, "old") == 0 and "already" in capsys.readouterr().out

    store(lake, "new", "two", {"th": 60})  # 10 points worse in Thai
    assert promote(lake, "new") == 1
    shown = capsys.readouterr()
    assert "refused: th may be worse by 5 points or more" in shown.err
    assert "th Thai" in shown.out and "-10.0 points [" in shown.out and "sv " in shown.out
    assert champion(lake) == resolve_model(ModelConfig(run="old"), lake).content

    store(lake, "new", "two", {"th": 22})  # half a point worse, of 400 paired prompts
    assert promote(lake, "new", "--margin", "0.4") == 1
    assert promote(lake, "new") == 0
    assert champion(lake) == resolve_model(ModelConfig(run="new"), lake).content
    decision = json.loads((Path(lake) / "aliases/champion.json").read_text())["decision"]
    assert decision["evaluation"] == "two" and decision["p_no_worse"]["th"] < 0.05


def test_few_prompts_prove_nothing(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    store(lake, "old", "one", {}, concepts=20)
    store(lake, "new", "two", {}, concepts=20)
    assert promote(lake, "old") == 0
    assert promote(lake, "new") == 1  # 20 of 20 against 20 of 20
    assert "not shown to hold it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("protocol", "part"),
    [
        ({"cases": "b" * 64}, "cases is aaaaaa"),
        ({"sampling": {"steps": 20, "count": 1}}, "sampling.steps is 20 and 50"),
        ({"judge": {"seed": 0, "seeds": 3}}, "judge.seeds is 3 and None"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_named(
    lake: str, capsys: pytest.CaptureFixture[str], protocol: dict[str, Any], part: str
) -> None:
    store(lake, "old", "one", {})
    store(lake, "new", "two", {}, **protocol)
    assert promote(lake, "old") == 0 and promote(lake, "new") == 2
    error = capsys.readouterr().err
    assert "evaluation two of the candidate and one of the champion" in error
    assert part.replace("cases is aaaaaa", "cases is " + "b" * 10) in error


def test_what_cannot_be_decided_is_an_error(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, part in (
        (("nobody",), "run nobody: has no export"),
        (("new", "--margin", "0"), "--margin 0.0: is not above 0"),
        (("new", "--to", "../x"), "is not a plain name"),
    ):
        assert promote(lake, *options) == 2
        assert part in capsys.readouterr().err
    assert promote(lake, "old") == 0
    assert promote(lake, "new") == 2
    assert "has no stored evaluation with outcomes" in capsys.readouterr().err
    store(lake, "old", "one", {})
    store(lake, "old", "three", {}, cases="c" * 64)
    store(lake, "new", "two", {})
    store(lake, "new", "four", {}, cases="c" * 64)
    assert promote(lake, "new") == 2
    assert "was evaluated in several ways (four, two). Remedy: choose one by --evaluation" in capsys.readouterr().err
    assert promote(lake, "new", "--evaluation", "two") == 0
    outcomes = next((Path(lake) / "evaluations/outcomes").iterdir())
    for path in (Path(lake) / "evaluations/outcomes").iterdir():
        path.write_bytes(outcomes.read_bytes()[:-1])
    assert promote(lake, "old", "--evaluation", "one") == 2
    assert "do not have the SHA-256" in capsys.readouterr().err
