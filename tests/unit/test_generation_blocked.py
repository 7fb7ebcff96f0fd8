"""Blocked terms: what matches in each script, what does not, which files are refused, and what a reject states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.blocked_terms import read_terms
from altdiffusion.generation.prompts import prompts_parents, prompts_units, read_prompts
from altdiffusion.generation.settings import PromptsConfig
from tests import generation_lake


def terms(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "terms.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("language", "term", "prompt", "matches"),
    [
        ("en", "gun", "A GUN, please", True), ("en", "gun", "a gunman", False), ("en", "gun", "begun", False),
        ("en", "gun", "g\u200bu\u00adn", True), ("en", "gun", "ｇｕｎ", True), ("en", "gun", "un-gun-ed", True),
        ("en", "big gun", "a Big\n  gun!", True), ("en", "big gun", "big red gun", False),
        ("en", "gun", "画gun图", True),
        ("de", "Straße", "STRASSE bei Nacht", True), ("de", "Strasse", "Straße", True),
        ("fr", "épée", "une e\u0301pe\u0301e", True), ("fr", "épée", "epee", False),
        ("tr", "ısırık", "ISIRIK", True), ("tr", "istanbul", "İSTANBUL'da", True),
        ("vi", "chó", "một con CHÓ", True), ("vi", "chó", "một con cho", False),
        ("hi", "की", "राजा की रानी", True), ("hi", "क", "राजा की रानी", False), ("hi", "हिन्दी", "हिन्दी में", True),
        ("ar", "سلاح", "سِلَاحٌ كبير", True), ("ar", "سلاح", "ســلاح", True), ("ar", "سلاح", "سلاحف", False),
        ("ru", "Ёж", "ёж в лесу", True), ("uk", "їжак", "ЇЖАК", True), ("ko", "총", "총 을", True),
        ("ko", "총", "총각", False), ("zh", "手枪", "一把手枪在桌子上", True), ("zh", "手枪", "一把 手 枪", True),
        ("ja", "ピストル", "赤いﾋﾟｽﾄﾙです", True), ("th", "น้ำตก", "ภาพน้ำตกสวย", True),
        ("th", "กำลัง", "กํ\u0e32ลังวิ่ง", True),
        ("th", "ปืน", "เปิด", False), ("*", "手枪", "a 手枪 there", True), ("*", "gun", "une gun", True),
        ("es", "C-3PO", "un c 3po dorado", True), ("pl", "żółw", "ŻÓŁW", True), ("it", "x²", "x2", True),
    ],
)  # fmt: skip
def test_what_matches(tmp_path: Path, language: str, term: str, prompt: str, matches: bool) -> None:
    blocked = read_terms(terms(tmp_path, f"# list\n\n{language}\t{term}\tweapons\r\n"))
    of = "fr" if language == "*" else language
    assert blocked.match(prompt, of) == ("line 3, weapons" if matches else None)


def test_a_term_holds_for_its_language(tmp_path: Path) -> None:
    blocked = read_terms(terms(tmp_path, "pt\tarma\npt-BR\ttrem\n"))
    assert blocked.match("arma", "pt-BR") == "line 1" and blocked.match("arma", "es") is None
    assert blocked.match("trem", "pt-BR") == "line 2" and blocked.match("trem", "pt") is None
    assert blocked.match("arma", "und") == "line 1"  # nobody knows that it is not Portuguese


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("en\tgun\nknife\n", "line 2: has 1 fields"), ("en\ta\tb\tc", "line 1: has 4 fields"),
        ("\nxx-\tgun", "line 2: has no BCP 47 tag"), ("en\t \u200b-", "line 1: has no letter"),
        (b"en\tgun\nde\t\xff\n", "line 2: is not UTF-8"), ("# nothing\n", "hold no term"),
        ("en\t" + "a " * 17, "line 1: has a term of more than 16 words"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_file_and_line(tmp_path: Path, text: str | bytes, problem: str) -> None:
    path = terms(tmp_path, text)
    with pytest.raises(AltDiffusionError, match=f"{path}.*{problem}"):
        read_terms(path)
    with pytest.raises(AltDiffusionError, match="do not exist"):
        read_terms(path + "x")


def test_a_blocked_prompt_is_a_reject_that_does_not_repeat_it(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": "a", "language": "en", "prompt": "a cat"}, {"id": "b", "language": "en", "prompt": "secretword cat"},
            {"id": "c", "language": "de", "prompt": "secretword"}, {"id": "d", "prompt": "Secretword"}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PromptsConfig(file=str(file), blocked_terms=terms(tmp_path, "en\tsecretword\tviolence\n"))
    prompts = read_prompts(config)
    assert prompts.accepted["id"].to_pylist() == ["a", "c"] and prompts.by_reason == {"prompt_blocked": 2}
    details = prompts.rejects["detail"].to_pylist()
    assert details[0] == "row 2, field prompt: 'line 1, violence' of blocked_terms is in it"
    assert not any("secretword" in detail.lower() for detail in details)


def test_another_list_is_another_version(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=6)
    made = []
    for text in (None, "en\tword 1\n", "ja\tword\n"):
        settings = {"file": f"{lake}/prompts.jsonl"}
        if text is not None:
            settings["blocked_terms"] = terms(tmp_path, text)
        config = generation_lake.config(lake, prompts=settings)
        made.append((generation_lake.import_prompts(lake, config), prompts_units(config.prompts)[0].id))
        kinds = [ref.kind for ref in prompts_parents(config.prompts)]
        assert kinds == (["source"] if text is None else ["source", "blocklist"])
    assert len({version.ref for version, _ in made}) == len({unit for _, unit in made}) == 3
    assert [version.manifest.rejects_by_reason.get("prompt_blocked", 0) for version, _ in made] == [0, 0, 2]
