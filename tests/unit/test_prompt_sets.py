"""Sets of prompts: our own 1,080, and readers of published sets."""

from __future__ import annotations

import collections
import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.texts import read_texts
from altdiffusion.evaluation.prompt_sets import published
from altdiffusion.evaluation.prompt_sets.case_rows import CaseRow, write_cases
from altdiffusion.evaluation.prompt_sets.mc18 import CATEGORIES, PER_CATEGORY, mc18
from altdiffusion.generation.prompts import read_prompts
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.languages import BY_CODE, CODES
from pipelines.cases import read_cases

SCRIPTS = {
    "Latn": ("LATIN",), "Hans": ("CJK",), "Jpan": ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"), "Thai": ("THAI",),
    "Kore": ("HANGUL",), "Deva": ("DEVANAGARI",), "Cyrl": ("CYRILLIC",), "Arab": ("ARABIC",),
}  # fmt: skip
MARKS = {
    "ja": "のをにがはでるたとれみりむ", "uk": "іїєґ", "ru": "ыэёъ", "tr": "ğşıİ", "vi": "ăơưđạảấầếềộợụịọớờốồ",
    "pl": "ąęłńśźż", "pt": "ãõçéêíóú", "es": "ñáéíóú", "de": "äöüß", "fr": "éèêàçâ",
}  # fmt: skip
"""Characters that most texts of a language taken together have and its neighbours lack."""


def test_mc18_has_ten_prompts_per_language_and_category_without_repetition() -> None:
    rows = list(mc18())
    assert len(rows) == len(CODES) * len(CATEGORIES) * PER_CATEGORY == 1080
    counts = collections.Counter((row.language, row.concept.split("-")[1]) for row in rows)
    assert set(counts) == {(code, category) for code in CODES for category in CATEGORIES}
    assert set(counts.values()) == {PER_CATEGORY}
    assert len({(row.language, row.prompt.casefold()) for row in rows}) == len({row.id for row in rows}) == 1080
    assert len({row.english.casefold() for row in rows}) == 1080, "two prompts have the same gloss"


def test_mc18_prompts_are_in_the_script_of_their_language_in_nfc() -> None:
    for row in mc18():
        for text in (row.prompt, row.english):
            assert unicodedata.is_normalized("NFC", text) and text == " ".join(text.split()), row.id
            assert not any(unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") for character in text), row.id
            assert 6 <= len(text) <= 90 and not text.endswith((".", "。")), row.id
        letters = [unicodedata.name(character) for character in row.prompt if character.isalpha()]
        assert all(name.startswith(SCRIPTS[BY_CODE[row.language].script]) for name in letters), row.id
        english = [unicodedata.name(character) for character in row.english if character.isalpha()]
        assert all(name.startswith("LATIN") for name in english), row.id
        assert (row.prompt == row.english) == (row.language == "en"), row.id


def test_mc18_prompts_look_like_their_own_language() -> None:
    texts = collections.defaultdict(str)
    for row in mc18():
        texts[row.language] += row.prompt
    for code, marks in MARKS.items():
        assert sum(character in marks for character in texts[code]) > 20, code
    assert not set("ыэёъ") & set(texts["uk"]) and not set("іїєґ") & set(texts["ru"])


def test_mc18_is_written_as_cases_that_generation_and_evaluation_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "mc18.jsonl")
    assert main(["prompt-set", "mc18", "--out", path]) == 0
    assert "1,080 prompts" in capsys.readouterr().out
    assert len(read_cases(PromptsConfig(file=path, strict=True), 1).by_id) == len(read_texts(path)) == 1080
    prompts = read_prompts(PromptsConfig(file=path, languages=CODES, strict=True))
    assert prompts.accepted.num_rows == 1080 and set(prompts.by_language.values()) == {60}


def xtd10(root: Path, **changes: list[str]) -> str:
    names = ["COCO_val2014_1.jpg", "COCO_val2014_2.jpg"]
    texts = {
        "en": ["a cat", "a dog"],
        "jp": ["猫", "犬"],
        "zh": ["一只猫", "一只狗"],
        "de": ["Katze", "Hund"],
    } | changes
    for folder, codes in (("MIC", ("en", "de")), ("STAIR", ("jp",)), ("XTD10", ("zh",))):
        (root / folder).mkdir()
        for code in codes:
            (root / folder / f"test_1kcaptions_{code}.txt").write_text("\n".join(texts[code]) + "\n", "utf-8")
    (root / "XTD10" / "test_image_names.txt").write_text("\n".join(names) + "\n")
    return str(root)


def test_xtd10_is_read_line_by_line_from_all_its_folders(tmp_path: Path) -> None:
    rows = list(published.xtd10(xtd10(tmp_path)))
    assert [(row.id, row.prompt, row.english, row.image) for row in rows[:4]] == [
        ("COCO_val2014_1-en", "a cat", "a cat", "COCO_val2014_1.jpg"),
        ("COCO_val2014_1-zh", "一只猫", "a cat", "COCO_val2014_1.jpg"),
        ("COCO_val2014_1-ja", "猫", "a cat", "COCO_val2014_1.jpg"),
        ("COCO_val2014_1-de", "Katze", "a cat", "COCO_val2014_1.jpg"),
    ]
    assert len(rows) == 8


def test_xtd10_of_another_length_or_without_english_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    with pytest.raises(AltDiffusionError, match=r"test_1kcaptions_de.txt: has 1 lines, and test_image_names.txt has 2"):
        list(published.xtd10(xtd10(tmp_path / "short", de=["Katze"])))
    with pytest.raises(AltDiffusionError, match="no test_1kcaptions_en"):
        list(published.xtd10(str(tmp_path / "short" / "STAIR")))


def test_xm3600_gives_the_first_caption_of_known_languages(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "image/key": "00f6", "image/locale": "de", "en": {"caption": ["a cat ", "kitty"]}, "de": {"caption": ["Katze"]},
        "sw": {"caption": ["paka"]},
    }  # fmt: skip
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({"image/key": "1", "de": {"caption": ["Hund"]}}) + "\n")
    rows = list(published.xm3600(str(path)))
    found = [(row.id, row.prompt, row.english) for row in rows]
    assert found == [("00f6-en", "a cat", "a cat"), ("00f6-de", "Katze", "a cat")]
    path.write_text("{}\n")
    with pytest.raises(AltDiffusionError, match=r"row 1.*KeyError"):
        list(published.xm3600(str(path)))


def test_wit_joins_languages_by_image(tmp_path: Path) -> None:
    lines = [
        "language\tpage_url\timage_url\tcaption_reference_description",
        'de\tp\thttp://a/Katze.jpg\t"eine\nKatze"',
        "fr\tp\thttp://a/seul.jpg\tun chat seul",
        "en\tp\thttp://a/Katze.jpg\ta cat",
        "en\tp\thttp://a/none.jpg\t",
    ]
    path = tmp_path / "wit.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows = list(published.wit(str(path)))
    found = [(row.language, row.prompt, row.english) for row in rows]
    assert found == [("en", "a cat", "a cat"), ("de", "eine Katze", "a cat")]
    assert len({row.concept for row in rows}) == 1 and rows[0].image == "http://a/Katze.jpg"
    path.write_bytes(gzip.compress(b"a\tb\n"))
    with pytest.raises(AltDiffusionError, match="has no column language, image_url"):
        list(published.wit(str(path)))


def test_pairs_bring_english_and_the_named_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "ja.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps([{"source_caption": "a cat", "target_caption": "猫", "image": "7.png"}]))
    assert main(["prompt-set", "pairs", str(path), "--language", "ja", "--out", str(out)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["7-en", "7-ja"]
    assert main(["prompt-set", "pairs", str(path), "--out", str(out)]) == 2
    assert main(["prompt-set", "mc18", str(path), "--out", str(out)]) == 2
    assert main(["prompt-set", "wit", "--out", str(out)]) == 2
    assert main(["prompt-set", "pairs", str(path), "--language", "sw", "--out", str(out)]) == 2
    assert "is not one of the eighteen" in capsys.readouterr().err


def test_a_repeated_id_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    row = CaseRow(concept="a", language="de", prompt="Katze", english="cat")
    with pytest.raises(AltDiffusionError, match="a-de: occurs twice"):
        write_cases([row, row], str(tmp_path / "out.jsonl"))
    with pytest.raises(AltDiffusionError, match="would be empty"):
        write_cases([], str(tmp_path / "out.jsonl"))
