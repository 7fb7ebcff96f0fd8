"""A lake with a links version, and its download, for the tests of the download."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from altdiffusion.curation.config import DownloadConfig, RetryConfig, SourceConfig
from altdiffusion.curation.download.download_work import DownloadWork, plan_download
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.records import LINKS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from pipelines.curate import CurateConfig, SelectedSource, pipeline_steps
from tests.fetch_server import Site

HOST = "pictures.test"


def image(number: int, size: tuple[int, int] = (96, 64), format: str = "PNG", **save: Any) -> bytes:
    """Return an image of 24 random squares, a different one for every number."""
    values = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.NEAREST).save(out, format, **{"quality": 90, **save})
    return out.getvalue()


def publish_links(
    lake: str, urls: list[str], shard_rows: int = 1000, *, expected: list[str | None] | None = None
) -> Version:
    """Publish a links version of these URLs, alternately Korean and Thai; `expected`: their expected_hash."""
    dataset = Lake(lake).dataset("links")
    columns: dict[str, Any] = {
        "sample_id": list(range(100, 100 + len(urls))),
        "url": urls,
        "caption": [f"caption {i}" for i in range(len(urls))],
        "language": ["th" if i % 2 else "ko" for i in range(len(urls))],
        "language_score": [0.9] * len(urls),
        "aesthetic": [7.0 + i / 100 for i in range(len(urls))],
        "source": ["s"] * len(urls),
        "expected_hash": expected or [None] * len(urls),
    }
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(urls), field.type)
            for field in LINKS
        ],
        schema=LINKS,
    )
    shards = tuple(dataset.write_shard(table.slice(start, shard_rows)) for start in range(0, len(urls), shard_rows))
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=len(urls), shards=shards)
    return dataset.publish(kind="links", records=[record], parents=[], config={}, fingerprint="f")


def config(site: Site, **given: Any) -> DownloadConfig:
    """Return small settings under which HOST is the server of the test."""
    settings: dict[str, Any] = {
        "image_size": 32,
        "resize_mode": "center_crop",
        "encode_format": "png",
        "encode_quality": 3,
        "min_side": 8,
        "deadline_s": 3.0,
        "retries": 0,
        "connect_to": {f"{HOST}:80": f"127.0.0.1:{site.port}"},
        "allow_private": ("127.0.0.0/8",),
    }
    return DownloadConfig(**{**settings, **given})


def download(
    lake: str, links: Version, settings: DownloadConfig, name: str = "images", rows: int = 1000, **given: Any
) -> Version:
    """Do what `jobs.curate` does at this pipeline step, in this process."""
    work = DownloadWork(lake=lake, dataset=name, download=settings, **given)
    work.setup()
    try:
        records = [work.run(unit) for unit in plan_download(links, rows)]
    finally:
        work.close()
    return Lake(lake).dataset(name).publish(
        kind="images", records=records, parents=[links.ref], config={}, fingerprint="f"
    )  # fmt: skip


def curate(lake: str, download: DownloadConfig, passes: int = 0) -> Version:
    """Do what `jobs.curate` does from `links` on, in this process."""
    job = CurateConfig(
        lake=lake,
        sources=(SelectedSource(source=SourceConfig(name="s", uri="x")),),
        download=download,
        retry=RetryConfig(passes=passes) if passes else None,
    )
    version = None
    with open(os.devnull, "w") as quiet:
        for pipeline_step in pipeline_steps(job)[2:]:
            progress = Progress(pipeline_step.name, stream=quiet)
            (version,) = run_pipeline_step(Lake(lake), pipeline_step, backend="inline", progress=progress)
    assert version is not None
    return version
