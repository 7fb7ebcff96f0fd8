"""The page of blind comparisons in a real browser: keys, clicks, a phone's width, and the file that it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.evaluation.ab_page import key_uri
from tests.ab_lake import MODELS, make_lake


def test_a_person_answers_by_keys_and_clicks_and_saves_the_answers(
    tmp_path: Path, browser: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake(tmp_path)
    assert main(["ab", *MODELS, "--lake", lake, "--out", str(tmp_path / "page.html"), "--pairs", "4"]) == 0
    page = browser.new_page(viewport={"width": 390, "height": 844}, accept_downloads=True)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".duel:visible").count() == 1 and page.locator("#back").is_disabled()

    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.locator(".duel:visible [data-choice=left]").click()
    page.reload()  # the answers are kept
    assert page.inner_text("#number") == "2"
    page.keyboard.press("ArrowDown")
    page.locator("#choices [data-choice=right]").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")  # nothing is left to answer
    page.fill("#judge", "Ann B")
    with page.expect_download() as download:
        page.click("#save .main")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["answers"] == ["left", "tie", "right", "right"] and saved["judge"] == "Ann B"
    assert download.value.suggested_filename == f"answers-{saved['page']}-Ann-B.json"
    assert wrong == []
    page.close()

    (tmp_path / "answers.json").write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["ab-result", str(tmp_path / "answers.json"), "--lake", lake, "--json"]) == 0
    left = [pair["left"] for pair in json.loads(Path(key_uri(lake, saved["page"])).read_text())["pairs"]]
    b_won = [left[0] == "b", left[2] == "a", left[3] == "a"]
    assert json.loads(capsys.readouterr().out)["wins_b"]["value"] == pytest.approx(sum(b_won) / 3)
