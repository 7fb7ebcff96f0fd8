"""Invalid settings of download and retry are refused, and what is operational does not change the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.curation.config import DownloadConfig, DownloadEstimateConfig, RetryConfig, SourceConfig
from altdiffusion.errors import AltDiffusionError
from pipelines.common import ExecutionConfig, Workers
from pipelines.curate import CurateConfig, SelectedSource, plan


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


def test_auto_is_the_cores_of_a_worker_less_one() -> None:
    counts = {cores: DownloadConfig().decoder_count(cores) for cores in (0.5, 1, 2, 4, 4.5, 64)}
    assert counts == {0.5: 1, 1: 1, 2: 1, 4: 3, 4.5: 3, 64: 63}
    assert DownloadConfig(decoders=2).decoder_count(16) == 2
    assert fingerprint(DownloadConfig(decoders=2)) == fingerprint(DownloadConfig(decoders="auto"))
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=r"decoders: must be at least 1; give 1 or more, or auto"):
            DownloadConfig(decoders=wrong)
    for text in ("cores", "4", 1.5):
        with pytest.raises(AltDiffusionError, match=r"is not a whole number.*, or auto"):
            from_dict(DownloadConfig, {"decoders": text})


def test_the_plan_states_what_the_workers_amount_to() -> None:
    def stated(**given: Any) -> str:
        config = CurateConfig(
            lake="lake", sources=(SelectedSource(source=SourceConfig(name="s", uri="x")),),
            download=DownloadConfig(threads=256), download_workers=Workers(max=100, cpus=4), **given,
        )  # fmt: skip
        return str(plan(config).facts["downloads"])

    many = stated()
    assert "25,600 at a time (100 workers x 256), 400 cores with 300 decoders" in many
    assert "6.4 Gbit/s at 100 links/s per worker, 80% of links alive and 100 KB per image" in many
    faster = stated(estimate=DownloadEstimateConfig(links=10**9, links_per_s_per_worker=200.0, success=1.0))
    assert "16 Gbit/s at 200 links/s per worker" in faster
    assert stated(execution=ExecutionConfig(backend="inline")).startswith("256 at a time (1 worker x 256)")
