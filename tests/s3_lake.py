"""A small curation whose lake may be on an S3 server of this machine, and the faults of that server."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import SelectConfig, SourceConfig
from altdiffusion.execution.pipeline_step import published, run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage.dataset import Lake
from benchmarks.s3_server import serving as s3_serving
from pipelines.curate import CurateConfig, SelectedSource, pipeline_steps
from tests.download_lake import HOST, config, image
from tests.fetch_server import Site, reply, serving
from tests.source_rows import GOOD

ROWS = 6
NAMES = ("candidates", "links", "images")
BUCKET = "s3://bucket"


@contextlib.contextmanager
def bucket(root: Path, *, keys: bool = False) -> Iterator[str]:
    """Serve an empty bucket, set the variables by which s3:// reaches it, and yield the address of the server.

    With `keys`, requests are counted by kind and key.
    """
    import s3fs

    (root / "bucket").mkdir(parents=True)
    with s3_serving(root, delay_ms=0, keys=keys) as environment:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield environment["AWS_ENDPOINT_URL"]
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def counts(address: str) -> Counter[str]:
    """Return how many requests the server has answered, by kind."""
    with urllib.request.urlopen(f"{address}/?counts") as answer:
        return Counter(json.load(answer))


def wrong(address: str, *rules: Mapping[str, Any]) -> None:
    """Have the server do things wrong (benchmarks.s3_faults), or no longer."""
    body = json.dumps(rules).encode()
    urllib.request.urlopen(urllib.request.Request(f"{address}/?faults", data=body, method="POST")).close()


def hits(address: str) -> list[int]:
    """Return how many requests each rule has hit."""
    with urllib.request.urlopen(f"{address}/?faults") as answer:
        found: list[int] = json.load(answer)
        return found


@contextlib.contextmanager
def source(folder: Path) -> Iterator[tuple[Site, Path]]:
    """Serve six images; yield their server and a table of their links."""
    table = folder / "part-00000.parquet"
    rows = [{**GOOD, "url": f"http://{HOST}/{number}.png"} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), table)
    with serving() as site:
        site.answers = {f"/{number}.png": reply(image(number)) for number in range(ROWS)}
        yield site, table


def job(lake: str, site: Site, source: Path) -> CurateConfig:
    """Return the config of the curation."""
    return CurateConfig(
        lake=lake,
        sources=(
            SelectedSource(
                source=SourceConfig(
                    name="s", uri=str(source), preset="own", columns={"url": "url", "caption": "caption"}
                ),
                select=SelectConfig(min_side=None, max_aspect=None, punsafe_below=None, pwatermark_below=None),
            ),
        ),
        download=config(site),
    )


def curate(job: CurateConfig) -> dict[str, str]:
    """Run the three steps and return the digests that they publish."""
    lake = Lake(job.lake)
    with open(os.devnull, "w") as quiet:
        for step in pipeline_steps(job):
            if published(lake, step) is None:
                run_pipeline_step(lake, step, backend="inline", progress=Progress(step.name, stream=quiet))
    return {name: lake.dataset(name).head_digest() or "" for name in NAMES}
