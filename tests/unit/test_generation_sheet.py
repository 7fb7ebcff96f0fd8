"""The contact sheet: every letter from a font that has it, every image in its place."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation import sheet_page
from altdiffusion.generation.bidi import directional_runs
from altdiffusion.generation.generate_work import encode_png
from altdiffusion.generation.line_breaks import clusters, line_ends
from altdiffusion.generation.sheet import check_sheet, contact_sheet
from altdiffusion.generation.sheet_arrangement import MOST_COLUMNS, MOST_ROWS, arrange
from altdiffusion.generation.sheet_page import Cell
from altdiffusion.generation.typeface import Box, Glyph, Shaped, Typefaces
from altdiffusion.languages import CODES, LANGUAGES, in_order

RED, GREEN = (200, 20, 20), (20, 160, 40)


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with DejaVu Sans, which matplotlib carries: Latin, Cyrillic and Arabic, but no Thai."""
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


def test_long_captions_are_cut_to_fit(fonts: Path) -> None:
    faces = Typefaces(fonts)
    text = "одногорбый верблюд на фоне очень большой пустыни"
    lines = faces.lines(text, "ru", 400, 9, 100, 2)
    assert len(lines) == 2
    assert lines[0] == "одногорбый"
    assert lines[1].endswith("…")
    assert all(faces.width(line, "ru", 400, 9) <= 100 for line in lines)
    assert faces.lines("верблюд", "ru", 400, 9, 100, 2) == ["верблюд"]


def test_markup_in_a_caption_is_text(fonts: Path) -> None:
    """Captions enter the drawing as outlines only, so that nothing in them can end or open an element."""
    faces = Typefaces(fonts)
    drawn(cells_of("<b>&\"'</svg>"), fonts)
    assert len(faces.shaped("<b>&", "en", 400).parts) == 4


@pytest.fixture(scope="module")
def noto() -> Path:
    """Return the demo's folder of Noto fonts, which together cover the 18 languages."""
    from demo.fonts import fetch_fonts

    return fetch_fonts()


@pytest.fixture(scope="module")
def faces(noto: Path) -> Typefaces:
    return Typefaces(noto)


def cells_of(*captions: str, language: str = "en") -> list[Cell]:
    return [Cell(concept=f"c{i}", language=language, caption=text, image=png(RED)) for i, text in enumerate(captions)]


def keys(shaped: Shaped) -> list[str]:
    """Return the glyphs of a line from left to right; `.notdef` ends in g0."""
    assert not [part for part in shaped.parts if isinstance(part, Box)]
    return [part.key for part in shaped.parts if isinstance(part, Glyph)]


def has_notdef(shaped: Shaped) -> bool:
    return any(re.search(r"g0$", key) for key in keys(shaped))


EXEMPLARS = json.loads((Path(__file__).parent / "cldr_exemplars.json").read_text(encoding="utf-8"))["languages"]
NOT_IN_NOTO = {"\u203e"}  # the overline: shown as a box, with a note


@pytest.mark.parametrize("language", EXEMPLARS)
def test_every_exemplar_character_has_a_glyph(faces: Typefaces, language: str) -> None:
    """The letters, marks, digits and punctuation that CLDR lists for a language: composed, decomposed, upper case."""
    entry = EXEMPLARS[language]
    pairs = zip(entry["ranges"][::2], entry["ranges"][1::2], strict=True)
    characters = [*entry["characters"], *entry["sequences"]]
    characters += [chr(code) for first, last in pairs for code in range(ord(first), ord(last) + 1)]
    assert len(characters) >= 100
    texts = {*characters, *(character.upper() for character in characters)}
    texts |= {unicodedata.normalize("NFD", text) for text in texts}
    assert set(faces.require((text, language) for text in texts)) <= NOT_IN_NOTO
    for text in sorted(texts - NOT_IN_NOTO):
        assert not has_notdef(faces.shaped(text, language, 400)), f"{text!r} {text.encode('unicode_escape')!r}"


def test_exemplars_are_of_all_languages() -> None:
    assert set(EXEMPLARS) == set(CODES)


HARD = {
    "th": ["น้ำตก", "กำลัง", "ปู่ญี่ปุ่น", "ก็ฐุญู", "๐๑๒๓๔๕๖๗๘๙"],
    "hi": ["क्षत्रिय", "विद्यार्थी", "हिन्दी", "कृष्ण", "र्क ट्र ड़ ढ़ क़", "०१२३४५६७८९"],
    "ar": ["لا إلى الآن", "مُحَمَّدٌ", "اللّٰه", "أحمر iPhone 15", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹ پچژگ"],
    "vi": ["Tiếng Việt", "Ễ ặ ự ữ Ẳ Ợ", unicodedata.normalize("NFD", "Ễ ặ ự ữ Ẳ Ợ")],
    "ja": ["東京 Tokyo ２０２５", "ｶﾞｷﾞ がぎ", unicodedata.normalize("NFD", "がぎぱ")],
    "ko": ["한글 각", unicodedata.normalize("NFD", "한글 각"), "\u1112\u1161\u11ab ㅋㅋ \u11ab"],
    "en": ["“a” ‘b’ – — … •", "50% €£¥ ©®™ ½ ² ×÷± №", "e\u0301 n\u0303 o\u0308"],
}


@pytest.mark.parametrize("language", HARD)
def test_hard_words_have_all_their_glyphs(faces: Typefaces, language: str) -> None:
    for text in HARD[language]:
        assert faces.require([(text, language)]) == []
        for weight in (400, 600):
            assert not has_notdef(faces.shaped(text, language, weight)), text


def test_sara_am_is_its_two_parts_around_the_tone_mark(faces: Typefaces) -> None:
    """Shaping decomposes SARA AM (U+0E33) into NIKHAHIT, which goes under the tone mark, and SARA AA."""
    with_am, apart = (faces.shaped(text, "th", 400) for text in ("น้ำ", "น\u0e4d\u0e49\u0e32"))
    assert keys(with_am) == keys(apart)
    assert len(keys(with_am)) == 4
    assert with_am.width == apart.width


def test_conjuncts_are_one_shape(faces: Typefaces) -> None:
    assert len(keys(faces.shaped("क्ष", "hi", 400))) == 1
    assert len(keys(faces.shaped("لا", "ar", 400))) < len(keys(faces.shaped("لب", "ar", 400))) + 1


@pytest.mark.parametrize("written", ["iPhone 15 {}", "{} iPhone 15", "15 {}", "{} 15", "red {} cat", "({})", "x{}y"])
@pytest.mark.parametrize(("word", "language"), [("أحمر", "ar"), ("إلى", "ar"), ("مُحَمَّدٌ", "ar"), ("שָׁלוֹם", "he")])
def test_a_word_next_to_other_scripts_is_the_word_alone(
    faces: Typefaces, fonts: Path, written: str, word: str, language: str
) -> None:
    for drawing, at in ((faces, language), (Typefaces(fonts), "und")):
        if drawing is faces and language == "he":
            continue  # Noto's Hebrew is not among the demo's fonts, DejaVu has it
        alone = keys(drawing.shaped(word, at, 400))
        among = keys(drawing.shaped(written.format(word), at, 400))
        places = [i for i in range(len(among)) if among[i : i + len(alone)] == alone]
        assert len(places) == 1, (written, among, alone)


def ink(caption: str, folder: Path, language: str, zoom: int = 4) -> NDArray[np.float64]:
    """Return how dark each pixel of a caption is, cut to its ink."""
    sheet = contact_sheet(
        [Cell(concept="x", language=language, caption=caption, image=png(RED))], folder, cell=256, zoom=zoom
    )
    grey = 255.0 - np.asarray(Image.open(io.BytesIO(sheet)).convert("L"), np.float64)
    grey = grey[-48 * zoom :, (28 + 132 + 16) * zoom :]  # below the image, right of the label
    dark = np.argwhere(grey > 40)
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0) + 1
    return grey[top:bottom, left:right]


@pytest.mark.parametrize("before", ["iPhone 15", "15", "x", "(a)"])
def test_the_pixels_of_an_arabic_word_after_latin_are_those_of_the_word(noto: Path, before: str) -> None:
    """Its first letter (alef with hamza) once lost its body where two fonts met."""
    alone = ink("أحمر", noto, "ar")
    both = ink(f"{before} أحمر", noto, "ar")
    word = both[:, : alone.shape[1]]  # right to left: the Arabic word is at the left end
    rows = np.flatnonzero((word > 40).any(axis=1))
    assert abs(np.ptp(rows) + 1 - alone.shape[0]) <= 1
    assert word.sum() == pytest.approx(alone.sum(), rel=0.02)
    right = both[:, alone.shape[1] :]
    assert (right[:, : 2 * 4] < 40).all()  # the space: nothing of the word is cut off
    assert word[:, -4 * 4 :].sum() == pytest.approx(alone[:, -4 * 4 :].sum(), rel=0.1)  # the alef


def test_right_to_left_captions_are_at_the_right_edge(fonts: Path) -> None:
    def places_of_ink(text: str, language: str) -> NDArray[np.int64]:
        cells = [Cell(concept="x", language=language, caption=text, image=png(RED))]
        dark = np.asarray(Image.open(io.BytesIO(contact_sheet(cells, fonts, cell=96, zoom=1))).convert("L")) < 160
        columns = np.flatnonzero(dark[-48:, 176:].any(axis=0))  # of the cell, whose left edge is there
        return columns[columns < 96]

    arabic, english = places_of_ink("بيت", "ar"), places_of_ink("cat", "en")
    assert arabic.max() >= 93 and arabic.min() > 60
    assert english.min() <= 2 and english.max() < 40
    assert places_of_ink("בית", "und").max() >= 93  # no language: the text decides


def test_mixed_directions_follow_the_standard() -> None:
    """Visual orders as the reference implementations of UAX #9 give them; capitals are Hebrew here."""

    def visual(text: str, right_to_left: bool) -> str:
        hebrew = "".join(chr(0x05D0 + ord(c) - ord("A")) if c.isupper() else c for c in text)
        runs = directional_runs(hebrew, right_to_left)
        parts = (text[run.start : run.stop][:: -1 if run.right_to_left else 1] for run in runs)
        return "".join(parts)

    assert visual("car is THE CAR in hebrew", False) == "car is RAC EHT in hebrew"
    assert visual("THE CAR is car", True) == "is car RAC EHT"
    assert visual("iphone 15 RED", True) == "DER iphone 15"
    assert visual("RED 15 (CAT)", True) == ")TAC( 15 DER"  # the outlines of brackets are mirrored when shaped
    assert visual("a (RED) b", False) == "a (DER) b"
    assert visual("RED (a) B", True) == "B )a( DER"
    assert visual("ABC 12-34, 5%", True) == "5% ,12-34 CBA"
    assert visual("a BC  ", False) == "a CB  "
    assert visual("", True) == ""


def test_emoji_without_a_font_are_boxes_with_their_code_and_a_note(noto: Path, faces: Typefaces) -> None:
    symbols = faces.require([("a cat 😀 1\ufe0f\u20e3 ❤️", "en")])
    assert symbols == ["😀", "\u20e3", "❤"]
    boxes = [part.code for part in faces.shaped("a 😀", "en", 400).parts if isinstance(part, Box)]
    assert boxes == ["1F600"]
    notes = check_sheet(noto, [("a", "en", "cat 😀")])
    assert notes == ["not in the fonts, shown as boxes with code points: U+1F600 GRINNING FACE"]
    with_box, without = (drawn(cells_of(text), noto) for text in ("cat 😀", "cat"))
    assert with_box.shape[0] > without.shape[0]  # the note


def test_lines_end_where_the_script_allows() -> None:
    def pieces(text: str) -> list[str]:
        ends = line_ends(text)
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    assert pieces("a red-hot cat") == ["a ", "red-", "hot ", "cat"]
    assert pieces("群山。「海」") == ["群", "山。", "「海」"]
    assert pieces("赤いスマホを") == ["赤", "い", "スマホ", "を"]
    assert pieces("한국어 개") == ["한국어 ", "개"]
    assert pieces("สุนัขเดินเล่น") == ["สุนัข", "เดิน", "เล่น"]
    assert clusters("น้ำ") == [1 + 2]
    assert clusters("क्षत्रिa") == [3, 7, 8]
    assert clusters("👨\u200d👩\u200d👧🇩🇪🇫🇷❤\ufe0f") == [5, 7, 9, 11]


def test_noto_covers_the_names_of_all_languages(faces: Typefaces) -> None:
    assert faces.require((language.native, language.code) for language in LANGUAGES) == []
    han = {code: keys(faces.shaped("骨", code, 400))[0].split("w")[0] for code in ("zh", "ja", "ko")}
    assert len(set(han.values())) == 3  # each language draws it with its own font


def test_ids_decide_between_a_grid_and_rows() -> None:
    grid = arrange([("cat-ar", "ar"), ("cat-en", "en"), ("red-cat-zh-CN", "zh-CN"), ("dog-und", None)])
    assert grid.grid
    assert [(place.concept, place.language) for place in grid.places] == [
        ("cat", "ar"), ("cat", "en"), ("red-cat", "zh-CN"), ("dog", "und"),
    ]  # fmt: skip
    for ids in ([("cat", "en")], [("-en", "en")], [("cat-de", "en")], [("cat-en", "en"), ("CAT", "en")]):
        rows = arrange(ids)
        assert not rows.grid
        assert [place.concept for place in rows.places] == [name for name, _ in ids]
    assert not arrange([("cat-en", "en"), ("cat-en", "en")]).grid  # two images for one place
    assert in_order(["sv", "ar", "und", "en", "sv"]) == ["en", "ar", "sv", "und"]


def test_a_sheet_is_bounded_and_states_what_it_leaves_out() -> None:
    many = arrange((f"p{i}", "en") for i in range(5000))
    assert len(many.places) == MOST_COLUMNS * MOST_ROWS
    assert many.notes == ("the first 512 of 5,000 images",)
    wide = arrange((f"c{i}-{code}", code) for i in range(40) for code in ("en", "ar"))
    assert len(wide.places) == 2 * MOST_COLUMNS
    assert wide.notes == ("the first 16 of 40 concepts",)
    tall = arrange((f"c-{code}", code) for code in (f"q{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(50)))
    assert len(tall.places) == MOST_ROWS
    assert tall.notes == ("the first 32 of 50 languages",)


def test_thousands_of_images_with_long_prompts_are_one_sheet(fonts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet_page, "MOST_PIXELS", 1_000_000)
    cells = cells_of(*(f"{i} " + "cat " * 400 for i in range(2000)))
    sheet = Image.open(io.BytesIO(contact_sheet(cells, fonts, grid=False, cell=512)))
    assert 900_000 < sheet.width * sheet.height <= 1_010_000


def test_a_check_finds_what_would_stop_the_sheet(fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "en", "a cat"), ("b", "sv", "katt"), ("c", None, "кот")]
    file = str(tmp_path / "new" / "grid.png")
    assert check_sheet(fonts, rows, file=file) == []
    assert not (tmp_path / "new").exists()  # a dry run changes nothing
    with pytest.raises(AltDiffusionError, match=r"THO THAHAN.* none of the 1 fonts .* add a font for Thai, Bengali|bn"):
        check_sheet(fonts, [*rows, ("d", "th", "ท"), ("e", "bn", "ক")])
    with pytest.raises(AltDiffusionError, match="does not exist"):
        check_sheet(tmp_path / "none", rows)
    with pytest.raises(AltDiffusionError, match="holds no fonts"):
        check_sheet(tmp_path, rows)
    with pytest.raises(AltDiffusionError, match="is a folder"):
        check_sheet(fonts, rows, file=str(tmp_path))
    with pytest.raises(AltDiffusionError, match="is not a local file"):
        check_sheet(fonts, rows, file="s3://bucket/grid.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(AltDiffusionError, match="is a file"):
        check_sheet(fonts, rows, file=str(tmp_path / "file" / "grid.png"))
    for package in ("resvg_py", "uharfbuzz", "fontTools"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(AltDiffusionError, match=rf"needs the package {package}.*install the extra `sheet`"):
                check_sheet(fonts, rows)
