"""The page of an evaluation in a real browser: on a phone and a desk, light and dark, nothing overflows or is tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altdiffusion.evaluation.figures.write import write_page
from tests import kept_evaluation

TEXTS = """() => [...document.querySelectorAll('svg.figure')].flatMap(svg => {
  const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBoundingClientRect(), style = getComputedStyle(text);
    return {text: text.textContent, size: parseFloat(style.fontSize) * scale, colour: style.fill,
      inside: box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.bottom <= frame.bottom + 1};
  });
})"""
MARKS = "() => [...new Set([...document.querySelectorAll('path.mark')].map(m => getComputedStyle(m).fill))]"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    kept_evaluation.keep(str(folder))
    return Path(write_page(str(folder), "night", str(folder / "page.html"))[0])


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return WCAG 2's contrast ratio of two sRGB colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text[4:-1].split(","))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_readable_and_loads_nothing(path: Path, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    texts = page.evaluate(TEXTS)
    assert len(texts) > 300 and not [one for one in texts if one["size"] < 11 or not one["inside"]]
    paper = rgb(page.evaluate("getComputedStyle(document.querySelector('.figure .paper')).fill"))
    assert min(contrast(rgb(colour), paper) for colour in {one["colour"] for one in texts}) >= 4.5
    colours = page.evaluate(MARKS)
    assert len(colours) == len(kept_evaluation.STATES)
    assert min(contrast(rgb(colour), paper) for colour in colours) >= 3
    page.close()
    assert wrong == []
