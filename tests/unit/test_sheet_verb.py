"""`altdiffusion sheet`: each image at its place, as a grid of languages and concepts or in rows with captions."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.storage.dataset import Lake
from tests.lineage_lake import checkpoint, publish

LANGUAGES = {"en": "a cat", "de": "eine Katze", "ar": "قطة"}
CONCEPTS = ("cat", "dog", "sun", "sea")
COLOURS = {
    (concept, code): (250 - 60 * row, 60 * column, 40 + 90 * row)
    for row, code in enumerate(LANGUAGES)
    for column, concept in enumerate(CONCEPTS)
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    lake = Lake(str(tmp_path_factory.mktemp("sheet") / "lake"))
    origin = checkpoint(lake, "m18", 100, "quality", [], {"loss": 0.5})
    rows = []
    for (concept, code), colour in COLOURS.items():
        out = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(out, "PNG")
        rows.append(
            {
                "id": f"{concept}-{code}", "language": code, "prompt": LANGUAGES[code], "seed": 7,
                "image": out.getvalue(), "image_sha256": hashlib.sha256(out.getvalue()).hexdigest(),
                "checkpoint": str(origin), "steps": 50, "guidance_scale": 9.0, "sampler": "ddim",
            }
        )  # fmt: skip
    publish(lake, "drawn", "generations", rows, [origin])
    publish(lake, "images", "images", [{"sample_id": 1, "language": "en"}], [])
    return lake.uri


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> str:
    import matplotlib

    folder = tmp_path_factory.mktemp("fonts")
    source = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        (folder / name).write_bytes((source / name).read_bytes())
    return str(folder)


def places(path: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the centre of each image on a sheet, in pixels."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    found = {}
    for key, colour in COLOURS.items():
        ys, xs = np.nonzero((pixels == colour).all(axis=2))
        if len(xs) > 1000:
            found[key] = (int(np.median(xs)), int(np.median(ys)))
    return found


def test_a_grid_has_rows_of_languages_and_columns_of_concepts(lake: str, fonts: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    command = ["sheet", "drawn", "--lake", lake, "--out", str(out), "--fonts", fonts]
    assert main(command) == 0
    every = places(out)
    assert set(every) == set(COLOURS)
    assert len({x for x, _ in every.values()}) == 4 and len({y for _, y in every.values()}) == 3
    assert every["cat", "en"][1] < every["cat", "de"][1] and every["cat", "en"][0] < every["dog", "en"][0]
    assert main([*command, "--languages", "en,ar", "--prompts", "cat-*,sea-*"]) == 0
    some = places(out)
    assert set(some) == {(concept, code) for concept in ("cat", "sea") for code in ("en", "ar")}
    assert some["cat", "ar"][0] == some["cat", "en"][0] < some["sea", "en"][0]


def test_one_language_is_shown_in_rows_with_its_captions(lake: str, fonts: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.png"
    command = ["sheet", "drawn", "--lake", lake, "--out", str(out), "--fonts", fonts, "--languages", "ar"]
    assert main([*command, "--columns", "2", "--cell", "120", "--title", "Arabic"]) == 0
    found = places(out)
    assert list(found) == [(concept, "ar") for concept in CONCEPTS]
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = found.values()
    assert (x1, x2, y1, y3) == (x3, x4, y2, y4) and x1 < x2 and y1 < y3
    pixels = np.asarray(Image.open(out).convert("L"))
    below = pixels[y1 + 120 + 8 : y1 + 120 + 30, x1 - 100 : x1 + 120]
    assert (below < 128).any()  # the caption


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["drawn", "--languages", "zh"], "its languages are ar, de, en, an id is cat-en"),
        (["drawn", "--columns", "40"], "--columns 40: is not from 1 to 16"),
        (["drawn", "--cell", "3"], "--cell 3: is not from 16 to 1024"),
        (["images"], "holds images, not generations"),
        (["drawn", "--fonts", "/nowhere"], "fonts folder /nowhere: does not exist"),
        (["drawn", "--out", "s3://away/grid.png"], "is not a local file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    lake: str, options: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sheet", *options, "--lake", lake]) == 2
    assert part in capsys.readouterr().err
