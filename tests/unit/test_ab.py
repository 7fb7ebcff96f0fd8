"""Blind comparisons by people: what the page shows and hides, and the analysis of its answers against closed forms."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.evaluation.ab_page import choose, common_pairs, key_uri, left_sides
from altdiffusion.evaluation.agreement import cohen_kappa, fleiss_kappa
from altdiffusion.evaluation.statistics import wilson, z_of
from altdiffusion.storage.dataset import Lake
from tests.ab_lake import CODES, MODELS, image, make_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_lake(tmp_path_factory.mktemp("ab"))


def page_of(lake: str, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    assert main(["ab", *MODELS, "--lake", lake, "--out", str(out), *options]) == 0
    text = out.read_text(encoding="utf-8")
    page = re.search(r'data-page="([0-9a-f]{16})"', text)
    assert page is not None
    return text, json.loads(Path(key_uri(lake, page[1])).read_text())


def test_the_page_does_not_show_whose_an_image_is(lake: str, tmp_path: Path) -> None:
    text, key = page_of(lake, tmp_path / "page.html", "--pairs", "9")
    assert all(name not in text for name in MODELS) and all(name in key["a"] + key["b"] for name in MODELS)
    assert b"drawn by" in image("a", 0)
    images = [base64.b64decode(data) for data in re.findall(r"data:image/webp;base64,([^\"]+)", text)]
    assert len(images) == 18
    for place, pair in enumerate(key["pairs"]):
        for side, body in zip(("left", "right"), images[2 * place : 2 * place + 2], strict=True):
            assert b"drawn by" not in body
            red = np.asarray(Image.open(io.BytesIO(body)))[0, 0, 0]
            assert (red == 200) == ((pair["left"] == "a") == (side == "left"))  # the images of A are red
    assert page_of(lake, tmp_path / "again.html", "--pairs", "9")[0] == text
    assert page_of(lake, tmp_path / "other.html", "--pairs", "9", "--seed", "1")[0] != text
    assert "http" not in re.sub(r"data:[^\"]+", "", text.replace("http-equiv", ""))


def test_sides_and_languages_are_balanced(lake: str) -> None:
    versions = Lake(lake).version(MODELS[0]), Lake(lake).version(MODELS[1])
    pairs = [pair for pair in common_pairs(*versions) if not pair.same]
    assert len(pairs) == 15  # of 16 prompts one has equal images, and B lacks the 17th
    for seed in range(8):
        chosen = choose(pairs, 9, seed)
        sides = left_sides(chosen, seed)
        assert set(Counter(pair.language for pair in chosen).values()) == {3}
        assert sorted(Counter(sides).values()) == [4, 5]
        for code in CODES:
            some = [side for pair, side in zip(chosen, sides, strict=True) if pair.language == code]
            assert sorted(Counter(some).values()) == [1, 2]
    assert {left_sides(pairs, seed)[0] for seed in range(8)} == {"a", "b"}


def answers(lake: str, tmp_path: Path, key: dict[str, Any], page: str, judge: str, winners: str) -> str:
    """Write the file that a page saves; winners has a, b or = per pair."""
    choices = [
        "tie" if winner == "=" else "left" if winner == pair["left"] else "right"
        for winner, pair in zip(winners, key["pairs"], strict=False)
    ]
    path = tmp_path / f"{judge}.json"
    path.write_text(json.dumps({"format": "altdiffusion-ab-1", "page": page, "judge": judge, "answers": choices}))
    return str(path)


def test_the_analysis_counts_wins_and_agreement(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, key = page_of(lake, tmp_path / "page.html", "--pairs", "12")
    page = re.search(r'data-page="(\w+)"', text)[1]  # type: ignore[index]
    one = answers(lake, tmp_path, key, page, "Ann", "bbbbbbbaa===")
    capsys.readouterr()
    assert main(["ab-result", one, "--lake", lake, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["answers"], result["ties"], result["judges"]) == (12, 3, 1)
    low, high = wilson(7 / 9, 9, z_of(0.95))
    assert result["wins_b"] == {"value": 7 / 9, "low": pytest.approx(low), "high": pytest.approx(high), "total": 9}
    assert result["p"] == pytest.approx(2 * (1 + 9 + 36) / 2**9)  # 7 of 9 by the binomial
    assert set(result["by_language"]) <= set(CODES) and result["fleiss_kappa"] is None

    two = answers(lake, tmp_path, key, page, "Bo", "bbbbbbbaa===")
    assert main(["ab-result", one, two, "--lake", lake, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["cohen_kappa"] == both["fleiss_kappa"] == pytest.approx(1.0)
    assert both["wins_b"]["low"] == pytest.approx(low)  # a second judge who agrees adds no evidence
    three = answers(lake, tmp_path, key, page, "Cy", "ab")
    assert main(["ab-result", one, two, three, "--lake", lake]) == 0
    shown = capsys.readouterr().out
    assert "judges  3, 26 answers" in shown and "Fleiss' kappa" in shown


def test_what_cannot_be_analysed_is_named(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, key = page_of(lake, tmp_path / "page.html", "--pairs", "12")
    page = re.search(r'data-page="(\w+)"', text)[1]  # type: ignore[index]
    good = answers(lake, tmp_path, key, page, "Ann", "ab")
    other = answers(lake, tmp_path, key, "f" * 16, "Bo", "ab")
    long = answers(lake, tmp_path, {"pairs": [*key["pairs"], *key["pairs"]]}, page, "Cy", "ab" * 12)
    (tmp_path / "list.json").write_text("[]")
    for paths, part in (
        ([other], "page ffffffffffffffff: has no key in the lake"),
        ([good, other], "are of 2 pages"),
        ([good, good], "are twice of judge Ann"),
        ([long], "1 to 12 of left, right, tie"),
        ([str(tmp_path / "list.json")], "where an object is required"),
        ([str(tmp_path / "none.json")], "does not exist"),
    ):
        assert main(["ab-result", *paths, "--lake", lake]) == 2
        assert part in capsys.readouterr().err
    for options, part in (
        ([MODELS[0], MODELS[0]], "differ in no image"),
        (["images", MODELS[0]], "holds images, not generations"),
        ([MODELS[0], "elsewhere"], "have no image of the same prompt, seed and size"),
        ([*MODELS, "--pairs", "0"], "is not from 1 to 1000"),
    ):
        assert main(["ab", *options, "--lake", lake, "--out", str(tmp_path / "x.html")]) == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_kappas_are_the_published_ones() -> None:
    """Fleiss' table of 14 judges and 10 items gives 0.210; a 2 x 2 table of Cohen's kappa by hand gives 0.4."""
    counts = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(["y"], ["y"]) is None
