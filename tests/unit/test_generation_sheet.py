"""The contact sheet: every letter from a font that has it, every image in its place."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import encode_png
from altdiffusion.generation.sheet import Cell, contact_sheet
from altdiffusion.generation.typeface import Typefaces
from altdiffusion.languages import LANGUAGES

pytest.importorskip("resvg_py", reason="drawing a sheet needs the demo's extra dependencies")

RED, GREEN = (200, 20, 20), (20, 160, 40)


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with DejaVu Sans, which matplotlib carries: Latin, Cyrillic and Arabic, but no Thai."""
    matplotlib = pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("fonts")
    source = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    (folder / source.name).write_bytes(source.read_bytes())
    return folder


def png(colour: tuple[int, int, int]) -> bytes:
    return encode_png(np.full((32, 32, 3), colour, np.uint8))


def drawn(cells: list[Cell], fonts: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(cells, fonts, cell=64, zoom=1))).convert("RGB"))


CELLS = [
    Cell(concept="apple", language="en", caption="red apple", image=png(RED)),
    Cell(concept="apple", language="ru", caption="красное яблоко", image=png(RED)),
    Cell(concept="leaf", language="en", caption="leaf", image=png(GREEN)),
    Cell(concept="leaf", language="ar", caption="ورقة نبات", image=png(GREEN)),
]


def places(sheet: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.int64]:
    return np.argwhere((sheet == np.array(colour, np.uint8)).all(axis=2))


def test_images_are_in_rows_of_languages_and_columns_of_concepts(fonts: Path) -> None:
    sheet = drawn(CELLS, fonts)
    red, green = places(sheet, RED), places(sheet, GREEN)
    assert red[:, 1].max() < green[:, 1].min()  # the first concept is left of the second
    assert red[:, 0].min() == green[:, 0].min()  # English is the first row for both
    assert len(red) == len(green) > 2 * 0.9 * 64 * 64  # two images each, but for rounded corners
    rows = np.unique(green[:, 0])
    assert (np.diff(rows) > 1).sum() == 1  # Arabic is below English, with a gap
    assert red[:, 0].max() > green[:, 0].max()  # Russian is the last row


def test_arabic_is_joined_and_runs_from_right_to_left(fonts: Path) -> None:
    """Lone letters are wider than joined ones, and the tall alef of "ab" (alef, beh) must be at the right end."""

    def ink(text: str) -> NDArray[np.int64]:
        with_text = drawn([Cell(concept="x", language="ar", caption=text, image=png(RED))], fonts).astype(int)
        without = drawn([Cell(concept="x", language="ar", caption=" ", image=png(RED))], fonts).astype(int)
        return np.argwhere(np.abs(with_text - without).sum(axis=2)[-45:] > 60)

    joined, lone = ink("بيت"), ink("ب\u200cي\u200cت")
    assert np.ptp(joined[:, 1]) < 0.9 * np.ptp(lone[:, 1])
    word = ink("اب")
    tallest = word[word[:, 0] == word[:, 0].min()][:, 1].mean()
    assert tallest > word[:, 1].mean()


def test_a_letter_without_a_font_is_an_error_not_an_empty_box(fonts: Path) -> None:
    cells = [*CELLS, Cell(concept="apple", language="th", caption="แอปเปิล", image=png(RED))]
    with pytest.raises(AltDiffusionError, match=r"THAI CHARACTER.* is in none of the 1 fonts .* add a font for Thai"):
        contact_sheet(cells, fonts)


def test_folders_without_fonts_are_named(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="holds no fonts"):
        contact_sheet(CELLS, tmp_path)
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(AltDiffusionError, match=re.escape("bad.ttf: cannot be read")):
        contact_sheet(CELLS, tmp_path)
    with pytest.raises(AltDiffusionError, match="has no images"):
        contact_sheet([], tmp_path)


def test_long_captions_are_cut_to_fit(fonts: Path, tmp_path: Path) -> None:
    faces = Typefaces(fonts, tmp_path)
    text = "одногорбый верблюд на фоне очень большой пустыни"
    faces.want(text, "ru", 400)
    faces.prepare()
    lines = faces.lines(text, "ru", 400, 9, 100, 2)
    assert len(lines) == 2
    assert lines[0] == "одногорбый"
    assert lines[1].endswith("…")
    assert all(faces.width(line, "ru", 400, 9) <= 100 for line in lines)
    assert faces.lines("верблюд", "ru", 400, 9, 100, 2) == ["верблюд"]


def test_markup_is_escaped(fonts: Path, tmp_path: Path) -> None:
    faces = Typefaces(fonts, tmp_path)
    faces.want("<b>&", "en", 400)
    faces.prepare()
    assert ">&lt;b&gt;&amp;</tspan>" in faces.markup("<b>&", "en", 400)


def test_noto_covers_the_names_of_all_languages(tmp_path: Path) -> None:
    from demo.fonts import fetch_fonts

    folder = fetch_fonts()
    faces = Typefaces(folder, tmp_path)
    for language in LANGUAGES:
        faces.want(language.native, language.code, 600)
    faces.prepare()
    han = {code: faces.markup(text, code, 600) for code, text in (("zh", "中文"), ("ja", "日本語"), ("ko", "한국어"))}
    assert len({re.search(r"face\d+", text).group() for text in han.values()}) == 3  # type: ignore[union-attr]
