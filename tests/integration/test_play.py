"""`altdiffusion play` in a real browser: 18 languages side by side, several seeds, and what is wrong."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.generation.model import resolve_model
from altdiffusion.languages import CODES
from altdiffusion.play.drawing import Drawing
from altdiffusion.play.examples import examples
from tests import generation_lake
from tests.ports import free_port

WAIT_MS = 120_000


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawing]:
    lake = generation_lake.make_lake(tmp_path_factory.mktemp("play"))
    config = generation_lake.config(lake)
    drawing = Drawing(resolve_model(config.model, lake), config)
    yield drawing
    drawing.close()
    assert not drawing.folder.exists()


@pytest.fixture(scope="module")
def address(drawing: Drawing) -> Iterator[str]:
    from altdiffusion.play.page import build_page, serve

    page = build_page(drawing, steps=2, guidance_scale=2.0, sampler="ddim")
    yield serve(page, "127.0.0.1", free_port(), wait=False)
    page.close()


def test_a_person_draws_in_18_languages_and_with_several_seeds(address: str, browser: Any, drawing: Drawing) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
    page.goto(address, wait_until="networkidle", timeout=WAIT_MS)
    page.click("#draw-languages")
    page.wait_for_function("document.querySelectorAll('#languages img').length == 18", timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing runs out of a phone's screen
    shown = page.inner_text("#languages")
    assert all(f"{code}: {prompt}" in shown for code, prompt in next(iter(examples().values())).items())

    page.fill("#seed input", "7")
    page.get_by_role("tab", name="One prompt").click()
    page.fill("#prompt textarea", "кошка")
    page.fill("#count input[type=number]", "2")
    page.click("#draw-prompt")
    page.wait_for_function("document.querySelectorAll('#images img').length == 2", timeout=WAIT_MS)
    assert "seed 7" in page.inner_text("#images") and "seed 8" in page.inner_text("#images")
    source = page.eval_on_selector_all("#images img", "images => images.map(image => image.src)")[1]
    body = page.request.get(source).body()
    with Image.open(io.BytesIO(body)) as image:
        pixels = np.asarray(image.convert("RGB"))
    settings = {"negative_prompt": "", "width": 16, "height": 16, "steps": 2, "guidance_scale": 2.0, "sampler": "ddim"}
    ((_, expected),) = drawing._sampler.draw_rows(drawing.requests(["кошка"], seed=7, count=2, **settings))  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels, expected[1].image)

    page.fill("#prompt textarea", "  ")
    page.click("#draw-prompt")
    page.wait_for_selector("text=the prompt: is blank", timeout=WAIT_MS)
    assert hosts == {address.split("/")[2]}  # the page works without the rest of the web
    page.close()


def status_of(address: str, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address.rstrip('/')}{path}", headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_other_pages_and_other_files_are_out_of_reach(address: str, drawing: Drawing, tmp_path: Path) -> None:
    """A page of the web whose name leads here (DNS rebinding) is refused; so is any file but images that were drawn."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    assert status_of(address, "/config") == 200
    assert status_of(address, "/config", Host="evil.example") == 400
    assert status_of(address, "/config", Host="evil.example:80", Origin="http://evil.example") == 400
    here = Path(__file__).resolve()
    for path in (
        secret,
        "/etc/passwd",
        "/proc/self/environ",
        here,
        drawing.folder.parent / "x",
        f"{drawing.folder}/../x",
    ):
        for prefix in ("/gradio_api/file=", "/file="):
            assert status_of(address, f"{prefix}{path}") in (403, 404), path
    assert status_of(address, "/gradio_api/proxy=http://169.254.169.254/latest/meta-data/") >= 400


def test_every_language_has_every_example() -> None:
    assert len(examples()) >= 5
    for prompts in examples().values():
        assert tuple(prompts) == CODES and all(prompts.values())
        assert len(set(prompts.values())) > 12  # neighbours may share a word ("un gato")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 17}, "not a multiple of 8"), ({"height": 4096}, "up to 2048"), ({"seed": -1}, "seed -1")],
)
def test_what_the_model_cannot_draw_is_refused(drawing: Drawing, change: dict[str, Any], message: str) -> None:
    settings = {"negative_prompt": "", "seed": 1, "width": 16, "height": 16, "steps": 2, "guidance_scale": 2.0}
    with pytest.raises(Exception, match=message):
        drawing.requests(["cat"], sampler="ddim", **{**settings, **change})  # type: ignore[arg-type]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["play", "--model", "x"]) == 2
    assert "pip install '.[play]'" in capsys.readouterr().err
