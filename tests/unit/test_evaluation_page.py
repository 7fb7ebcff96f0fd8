"""The page of an evaluation: every value at its place, well-formed, the same bytes again, and safe with forged text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.figures.drawing import TEXT, WIDTH, Figure, fitted, tick_texts
from altdiffusion.evaluation.figures.kept import read_kept
from altdiffusion.evaluation.figures.page import figures_of, page_of
from altdiffusion.evaluation.figures.radar import radar
from altdiffusion.storage import evaluations
from altdiffusion.storage.evaluation_values import ACCURACY, ByLanguage, Value, quantity
from tests import kept_evaluation
from tests.kept_evaluation import GUIDANCE, STATES, STEPS

SVG = "{http://www.w3.org/2000/svg}"
SHARE = quantity(ACCURACY)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kept")
    kept_evaluation.keep(str(folder))
    return str(folder)


def marks(figure: Figure) -> dict[str, tuple[float, float]]:
    """Return the place of each mark by its label; a mark begins at a corner or at the left of a circle."""
    found = {}
    for path in ElementTree.fromstring(figure.file).iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None and title.text and ":" in title.text:
            x, y = re.findall(r"-?[\d.]+", path.attrib["d"])[:2]
            found[title.text] = (float(x), float(y))
    return found


def share(value: float) -> Value:
    return Value(value=value, low=value / 2, high=(1 + value) / 2, images=10)


def test_a_radar_has_its_corners_where_the_shares_are() -> None:
    by = ByLanguage(languages={"en": share(1.0), "de": share(0.5), "ja": share(0.0), "ar": share(0.25)}, mean=None)
    figure = radar("r", SHARE, {"only": by}, ["en", "de", "ja", "ar"], ["only"])
    places = {label.split(":")[0]: (x + 3.4, y) for label, (x, y) in marks(figure).items()}
    x, y = WIDTH / 2, places["only, ja"][1]  # the centre
    assert places["only, en"] == (x, pytest.approx(y - 98)) and places["only, ja"] == (x, y)
    assert places["only, de"] == (pytest.approx(x + 49), y) and places["only, ar"] == (pytest.approx(x - 24.5), y)


def test_every_value_of_states_and_sweeps_is_drawn(lake: str) -> None:
    kept = read_kept(lake, "night")
    figures = {figure.name: figure for figure in figures_of(kept)}
    assert len(figures) == 2 + 5 + 6 + 6  # radars, quantities by language, and both sweeps
    assert len(marks(figures["accuracy-radar"])) == 18 * len(STATES)
    assert len(marks(figures["accuracy-languages"])) == 19 * len(STATES)  # and the mean
    assert len(marks(figures["fid-guidance-scale"])) == 2 * len(GUIDANCE)
    assert len(marks(figures["accuracy-steps-en"])) == 2 * len(STEPS)
    whiskers = [figure.file.count(b'class="whisker') for figure in figures.values()]
    assert whiskers[1] == 19 * len(STATES) and figures["fid-languages"].file.count(b'class="whisker') == 0
    assert "has no interval" in figures["fid-languages"].about

    # A curve's last place is that of the state itself, and a higher share is drawn higher.
    steps = marks(figures["accuracy-steps"])
    own = kept.quantities[ACCURACY]["guidance"].mean
    assert own is not None and f"guidance, steps 50: {own.text(SHARE)}" in steps
    shown = [(float(label.split(": ")[1].split(" %")[0]), y) for label, (_, y) in steps.items() if "guidance," in label]
    assert [y for _, y in sorted(shown)] == sorted((y for _, y in shown), reverse=True)
    across = [x for label, (x, _) in steps.items() if label.startswith("guidance,")]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.02)  # 5, 10, 20: equal ratios
    first = next(figure for name, figure in figures.items() if name == "kid-guidance-scale")
    assert 'class="band c3"' in first.svg and 'class="line c4"' in first.svg  # the marks of quality and guidance


def test_texts_are_inside_of_the_figure_and_large_enough(lake: str) -> None:
    for figure in figures_of(read_kept(lake, "night")):
        root = ElementTree.fromstring(figure.file)
        width, height = (float(root.attrib[name]) for name in ("width", "height"))
        for text in root.iter(f"{SVG}text"):
            x, y, room = float(text.attrib["x"]), float(text.attrib["y"]), 6.2 * len(text.text or "")
            left = x - {"start": 0, "middle": room / 2, "end": room}[text.attrib["text-anchor"]]
            assert left >= -1 and left + room <= width + 1 and TEXT - 2 <= y <= height, (figure.name, text.text)
    sizes = re.findall(r"(\d+)px", Path("platform/altdiffusion/html/templates/figures.css").read_text())
    assert sizes and min(map(int, sizes)) >= TEXT


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0031, 0.0098], 0.002, 0.01), ([20.4, 59.0], 20, 60), ([3.0], 3, 4), ([0.0], 0, 0.25)],
)
def test_axes_have_round_ends_around_their_values(values: list[float], low: float, high: float) -> None:
    scale, ticks = fitted(values, 0, 100, share=False)
    assert (scale.low, scale.high) == (pytest.approx(low), pytest.approx(high)) and 2 <= len(ticks) <= 8
    texts = tick_texts(ticks, share=False)
    assert len(set(texts)) == len(ticks)
    assert [float(text) for text in texts] == pytest.approx(ticks)
    assert scale.at(low) == pytest.approx(0) and scale.at(high) == pytest.approx(100)


def test_the_verb_writes_the_same_bytes_again_and_loads_nothing(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert main(["evaluation", "page", "night", "--lake", lake, "--out", str(tmp_path / f"{name}.html")]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 2 * (1 + 19) and all(Path(path).is_file() for path in paths)
    one, two = (sorted(tmp_path.glob(f"{name}*")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    page = (tmp_path / "one.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page
    assert set(re.findall(r'https?://[^"\s<]+', page)) == {"http://www.w3.org/2000/svg"}
    assert '<bdi class="native" lang="ar">العربية</bdi>' in page and "ddim, 50 steps, guidance 9" in page
    assert main(["evaluation", "page", "day", "--lake", lake]) == 2
    assert "the lake keeps night" in capsys.readouterr().err


def test_text_of_a_forged_evaluation_is_text_and_wrong_values_are_errors(lake: str, tmp_path: Path) -> None:
    document = json.loads(Path(evaluations.uri_of(lake, "night")).read_text())
    document["controls"] = {"<script>alert(1)</script>": {"value": 1, "low": 0, "high": 1, "total": 1}}
    rates = document["states"][0]["languages"]["all"]
    rates['x"><b>'] = rates["en"]
    path = Path(evaluations.uri_of(str(tmp_path), "night"))
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    kept = read_kept(str(tmp_path), "night")
    page = page_of(kept)
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page
    for figure in figures_of(kept):
        ElementTree.fromstring(figure.file)
    for wrong in ("1", 1.5, math.inf, None, True):
        rates["en"] = {**rates["de"], "value": wrong}
        path.write_text(json.dumps(document))
        with pytest.raises(AltDiffusionError, match=r"night\.json"):
            read_kept(str(tmp_path), "night")
    document["states"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(AltDiffusionError, match=r"night\.json"):
        read_kept(str(tmp_path), "night")


def test_two_languages_have_dots_and_no_radar(tmp_path: Path) -> None:
    kept_evaluation.keep(str(tmp_path), codes=("en", "sv"))
    names = [figure.name for figure in figures_of(read_kept(str(tmp_path), "night"))]
    assert "accuracy-languages" in names and not [name for name in names if "radar" in name]
