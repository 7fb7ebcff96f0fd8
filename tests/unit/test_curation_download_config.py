"""Invalid settings of download and retry are refused, and what is operational does not change the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.curation.config import DownloadConfig, RetryConfig
from altdiffusion.errors import AltDiffusionError


@pytest.mark.parametrize(
    ("cls", "given", "named"),
    [
        (DownloadConfig, {"decoders": 0}, "decoders"),
        (DownloadConfig, {"decode_timeout_s": 0}, "decode_timeout_s"),
        (DownloadConfig, {"decoder_memory_mib": 0}, "decoder_memory_mib"),
        (DownloadConfig, {"shard_mib": 0}, "shard_mib"),
        (DownloadConfig, {"shard_mib": 2048}, "shard_mib"),
        (DownloadConfig, {"lookahead_mib": 0}, "lookahead_mib"),
        (DownloadConfig, {"per_host_connections": 0}, "per_host_connections"),
        (DownloadConfig, {"host_wait_s": -1}, "host_wait_s"),
        (DownloadConfig, {"robots_deadline_s": 0}, "robots_deadline_s"),
        (DownloadConfig, {"max_crawl_delay_s": -1}, "max_crawl_delay_s"),
        (DownloadConfig, {"retries": -1}, "retries"),
        (DownloadConfig, {"image_blocklist": "list.txt"}, "image_blocklist_sha256"),
        (DownloadConfig, {"image_blocklist_sha256": "0" * 64}, "image_blocklist_sha256"),
        (DownloadConfig, {"phash_distance": 65}, "phash_distance"),
        (DownloadConfig, {"on_mismatch": "drop"}, "on_mismatch"),
        (RetryConfig, {"passes": -1}, "passes"),
        (RetryConfig, {"reasons": ["http_600"]}, "reasons"),
        (RetryConfig, {"reasons": ["Timeout"]}, "reasons"),
    ],
)
def test_invalid_settings_name_the_key(cls: type, given: dict[str, Any], named: str) -> None:
    with pytest.raises(AltDiffusionError, match=named):
        from_dict(cls, given)


def test_what_decides_rows_or_bytes_is_in_the_fingerprint_and_the_rest_is_not() -> None:
    usual = fingerprint(DownloadConfig())
    for given in (
        {"decoders": 3}, {"threads": 2}, {"per_host_connections": 1}, {"lookahead_mib": 1}, {"max_crawl_delay_s": 1.0},
        {"per_host_per_s": 1.0}, {"retry_wait_s": 3.0},
    ):  # fmt: skip
        assert fingerprint(DownloadConfig(**given)) == usual, given  # type: ignore[arg-type]
    for given in (
        {"scaled_decode": False}, {"shard_mib": 1}, {"decode_timeout_s": 1.0}, {"decoder_memory_mib": 9},
        {"honor_robots": False}, {"robots_deadline_s": 1.0}, {"host_wait_s": 1.0}, {"on_mismatch": "keep"},
        {"phash_distance": 1}, {"image_blocklist": "a", "image_blocklist_sha256": "0" * 64},
    ):  # fmt: skip
        assert fingerprint(DownloadConfig(**given)) != usual, given  # type: ignore[arg-type]
