"""Invalid settings of curation are errors that name the key; operational ones do not change the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.curation.config import DownloadConfig, EncodeConfig, LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.errors import AltDiffusionError

SOURCE = {"name": "a", "uri": "x"}
ENCODE = {"vae": "x", "tokenizer": "y"}


@pytest.mark.parametrize(
    ("config", "values", "key"),
    [
        (SourceConfig, {**SOURCE, "name": "ü"}, "name"),
        (SourceConfig, {**SOURCE, "name": "../x"}, "name"),
        (SourceConfig, {**SOURCE, "preset": "laion-bass"}, "preset"),
        (SourceConfig, {**SOURCE, "rows_per_unit": 0}, "rows_per_unit"),
        (SourceConfig, {**SOURCE, "blocklist": "b.txt"}, "blocklist_sha256"),
        (SourceConfig, {**SOURCE, "blocklist": "b.txt", "blocklist_sha256": "A" * 64}, "blocklist_sha256"),
        (SourceConfig, {**SOURCE, "preset": "laion2b-en"}, "blocklist"),
        (SourceConfig, {**SOURCE, "preset": "columns", "columns": {"url": "a"}}, "columns"),
        (SourceConfig, {**SOURCE, "columns": {"uri": "a"}}, "columns"),
        (SourceConfig, {**SOURCE, "columns": {"md5": ""}}, "columns"),
        (SourceConfig, {**SOURCE, "columns": {"md5": "a", "phash": "a"}}, "columns"),
        (SelectConfig, {"min_side": 0}, "min_side"),
        (SelectConfig, {"max_aspect": 0.5}, "max_aspect"),
        (SelectConfig, {"buckets": 0}, "buckets"),
        (SelectConfig, {"keep_null": ["url"]}, "keep_null.0"),
        (LanguageConfig, {"languages": []}, "languages"),
        (LanguageConfig, {"languages": ["en", "en"]}, "languages"),
        (LanguageConfig, {"threshold": 1.5}, "threshold"),
        (LanguageConfig, {"thresholds": {"en": -1}}, "thresholds.en"),
        (LanguageConfig, {"model_sha256": "abc"}, "model_sha256"),
        (DownloadConfig, {"encode_format": "png"}, "encode_quality"),
        (DownloadConfig, {"deadline_s": 0}, "deadline_s"),
        (DownloadConfig, {"max_bytes": 0}, "max_bytes"),
        (DownloadConfig, {"user_agent": "a\r\nHost: b"}, "user_agent"),
        (DownloadConfig, {"allow_private": ["127.0.0.1/99"]}, "allow_private"),
        (DownloadConfig, {"connect_to": {"a": "b:80"}}, "connect_to"),
        (DownloadConfig, {"connect_to": {"a:80": "b"}}, "connect_to"),
        (DownloadConfig, {"per_host_per_s": 0}, "per_host_per_s"),
        (EncodeConfig, {**ENCODE, "resolution": 100}, "resolution"),
        (EncodeConfig, {**ENCODE, "micro_batch": 0}, "micro_batch"),
    ],
)
def test_an_invalid_value_names_its_key(config: type, values: dict[str, Any], key: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        from_dict(config, values, "job.yaml")
    assert f"job.yaml, key {key}" in str(caught.value) and "Remedy: " in str(caught.value)


def test_where_and_how_fast_do_not_change_the_fingerprint_but_what_does() -> None:
    here = DownloadConfig()
    there = DownloadConfig(
        threads=99, connect_to={"a:80": "b:1"}, allow_private=("10.0.0.0/8",), user_agent="x", per_host_per_s=1.0
    )
    assert fingerprint(here) == fingerprint(there) != fingerprint(DownloadConfig(max_bytes=1))
    assert fingerprint(SourceConfig(name="a", uri="x")) == fingerprint(SourceConfig(name="a", uri="y"))
    assert fingerprint(EncodeConfig(**ENCODE)) == fingerprint(EncodeConfig(vae="p", tokenizer="q", device="cuda"))
    assert fingerprint(EncodeConfig(**ENCODE)) != fingerprint(EncodeConfig(**ENCODE, seed=1))


def test_only_the_base_release_is_swapped_unless_configured() -> None:
    swapped = [SourceConfig(**SOURCE, preset=p).sizes_are_swapped for p in ("laion-base", "laion-joined")]
    assert swapped == [True, False]
    assert SourceConfig(**SOURCE, preset="laion-joined", swapped_sizes=True).sizes_are_swapped
