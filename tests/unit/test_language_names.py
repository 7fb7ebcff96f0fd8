"""What a person writes for a language leads to the code that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES, nearest_language
from pipelines.languages import look_at_languages
from tests.image_lake import publish


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("uk-UA", "uk"), ("uk_UA", "uk"), ("ua", "uk"), ("UK", "uk"), ("ukr", "uk"), ("Ukrainian", "uk"),
        ("українська", "uk"), ("zh-Hans", "zh"), ("jp", "ja"), ("qq", None), ("", None),
    ],
)  # fmt: skip
def test_the_nearest_language(text: str, code: str | None) -> None:
    assert nearest_language(text, CODES) == code


def test_a_dry_run_refuses_what_the_model_does_not_know(monkeypatch: Any) -> None:
    with pytest.raises(AltDiffusionError, match=r"uk-UA, ua.*write uk for uk-UA; write uk for ua; choose among"):
        look_at_languages(LanguageConfig(languages=("uk-UA", "ua", "hi")), False)
    assert look_at_languages(LanguageConfig(languages=("uk", "hi")), False) == []


def test_a_wrong_name_of_a_dataset_is_answered_with_the_nearest(tmp_path: Path) -> None:
    from altdiffusion.storage.dataset import Lake

    publish(str(tmp_path))
    with pytest.raises(AltDiffusionError, match=r"did you mean images\?"):
        Lake(str(tmp_path)).version("imagse")
