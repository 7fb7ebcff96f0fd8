"""MLflow's pages of a run and a model, and lineage.html, in a real browser at two widths: what must be visible is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.lineage.server import Server, serving
from altdiffusion.lineage.tracking import connect, run_page, workflow_page
from tests.integration.test_mlflow import train
from tests.lineage_lake import SmallLake

WIDTHS = pytest.mark.parametrize("width", [1440, 390])
TIMEOUT_MS = 120_000
SIZES = """() => [...document.querySelectorAll('svg *, .page *')].filter(
  one => [...one.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()) && one.tagName !== 'title'
).map(one => ({text: one.textContent.trim(), size: parseFloat(getComputedStyle(one).fontSize)}))"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """Return a lake whose training has logged curves, sheets of two languages and a checkpoint."""
    small = SmallLake(tmp_path_factory.mktemp("pages") / "lake")
    with train(small) as run:
        run.input(small.latents)
        run.compare({"datasets": f"latents@{small.latents.ref.digest[:8]}"})
        run.checkpoint(small.quality, step=100, metrics={"loss": 0.25})
        run.exported(small.quality, f"{small.uri}/exports/quality/step-00000100")
        for step in (0, 100):
            for code in ("de", "ja", "_all"):
                run.image(f"samples/{code}", Image.new("RGB", (760, 1000), (step, 90, len(code) * 40)), step=step)
        run.page(small.quality)
    return small


@pytest.fixture(scope="module")
def server(small: SmallLake) -> Iterator[Server]:
    with serving(small.uri) as server:
        yield server


def opened(browser: Any, width: int, address: str) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(address)
    return page


@WIDTHS
def test_the_page_of_a_lineage_is_readable(small: SmallLake, browser: Any, width: int, tmp_path: Path) -> None:
    for arguments in (["quality"], []):
        out = tmp_path / "lineage.html"
        assert main(["lineage", "page", *arguments, "--lake", small.uri, "--out", str(out)]) == 0
        page = opened(browser, width, out.as_uri())
        wrong: list[str] = []
        page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
        page.on("request", lambda request, wrong=wrong: wrong.append(request.url))
        assert page.evaluate("document.documentElement.scrollWidth") == width
        texts = page.evaluate(SIZES)
        assert len(texts) > 40 and not [one for one in texts if one["size"] < 11]
        scales = page.evaluate("[...document.querySelectorAll('.drawing svg')].map(s => s.getScreenCTM().a)")
        assert scales == [1]
        if arguments:
            box = page.locator("svg .root").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] < 900
        page.click("[data-zoom=out]")
        assert page.evaluate("document.querySelector('.drawing svg').getScreenCTM().a") == pytest.approx(0.8, rel=0.01)
        page.click("[data-zoom=one]")
        page.locator("svg a.name", has_text="latents").click()
        assert page.locator("tr.here .name").inner_text() == "latents"
        button = page.locator("tr.here .copy")
        button.click()
        page.locator(".copy", has_text="copied").first.wait_for()  # the page's policy forbids a predicate as text
        assert wrong == []
        page.close()


@WIDTHS
def test_what_a_person_looks_for_is_on_the_first_screen(
    small: SmallLake, server: Server, browser: Any, width: int, tmp_path: Path
) -> None:
    tracking = connect(None, small.uri)
    (run,) = tracking.client.search_runs([tracking.experiment_id])
    address, _, suffix = run_page(server.url, tracking.experiment_id, run.info.run_id).partition("?")
    models = tracking.client.search_logged_models([tracking.experiment_id])
    (model,) = (one for one in models if one.tags["lineage.ref"] == str(small.quality))
    page = opened(browser, width, f"{address}?{suffix}")
    page.get_by_text("train.optimizer.lr").first.wait_for(state="attached")
    page.goto(f"{address}/model-metrics?{suffix}")
    if width < 1000:  # MLflow opens its navigation and its assistant, which leave 60 of 390 pixels; both fold away
        for button in ("mlflow.assistant.chat_panel.close", "mlflow_header.toggle_sidebar_button"):
            page.locator(f"[data-component-id='{button}']").dispatch_event("click")
    image = page.locator("img[src*='samples'], img[src^='blob:']").first
    image.wait_for(state="visible")
    box = image.bounding_box()
    # MLflow puts the charts of checkpoint/* above samples/*, and stacks all charts on a phone.
    assert box["y"] < 900 and box["width"] >= 200 and box["x"] + box["width"] <= width
    assert page.evaluate("one => one.naturalWidth", image.element_handle()) >= 700  # not MLflow's thumbnail of 256
    page.goto(f"{address}/artifacts/lineage.html?{suffix}")
    frame = page.frame_locator("iframe").first
    frame.locator("svg .root").wait_for(state="attached")
    small_texts = [one for one in frame.locator("body").evaluate(SIZES) if one["size"] < 11]
    assert small_texts == []
    page.goto(workflow_page(server.url, f"experiments/{tracking.experiment_id}/models/{model.model_id}"))
    page.get_by_text("Weights:").first.wait_for(state="attached")
    page.close()
