"""Curation and encoding with a lake on an object store, next to the same on a local disk: images per second.

    python -m benchmarks.object_store [--rows 12000] [--unit 4000] [--repeats 3] [--delay-ms 20]

An S3 server on loopback waits 20 ms before each answer (`benchmarks.s3_server`). One process runs each job whole, by
`run_pipeline_step` as a job without Ray does: plan, units with their records, publication.

    curate    links to images: select, language, download (640 x 480 JPEG from a loopback server to 256 pixels)
    encode    these images to latents of 64 pixels, by a VAE that is faster than decoding, so that waits show

In turn, medians; digests are compared. Requests are per unit, of all steps, publication included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from altdiffusion.config import from_dict
from altdiffusion.execution.pipeline_step import PipelineStep, run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage.dataset import Lake
from benchmarks import images, s3_server
from benchmarks.encode import save_vae
from pipelines import curate, encode
from tests.curation_lake import save_tokenizer
from tests.source_rows import GOOD

AT_LEAST = 0.9
PHOTOS = 64


def curation(lake: str, scratch: Path, port: int, unit: int) -> tuple[PipelineStep, ...]:
    source = {"name": "s", "uri": str(scratch / "links.parquet"), "preset": "own", "rows_per_unit": unit}
    source |= {"columns": {"url": "url", "caption": "caption"}}
    selection = {"min_side": None, "max_aspect": None, "punsafe_below": None, "pwatermark_below": None}
    download = {
        "image_size": 256,
        "ports": [port],
        "connect_to": {f"localhost:{port}": f"127.0.0.1:{port}"},
        "allow_private": ["127.0.0.0/8"],
        "per_host_connections": 16,
        "threads": 16,
    }
    tree = {"lake": lake, "sources": [{"source": source, "select": selection}], "download": download}
    return curate.pipeline_steps(from_dict(curate.CurateConfig, tree))


def encoding(lake: str, scratch: Path, unit: int) -> tuple[PipelineStep, ...]:
    models = {"vae": str(scratch / "vae"), "tokenizer": str(scratch / "tok"), "max_length": 8}
    tree = {"lake": lake, "encode": {**models, "resolution": 64, "rows_per_unit": unit}}
    return encode.pipeline_steps(from_dict(encode.EncodeJobConfig, tree))


def run(lake: str, steps: tuple[PipelineStep, ...]) -> tuple[float, list[str]]:
    """Return the seconds that the steps take, and the digests that they publish."""
    began = time.perf_counter()
    with open(os.devnull, "w") as quiet:
        for step in steps:
            run_pipeline_step(Lake(lake), step, backend="inline", progress=Progress(step.name, stream=quiet))
    taken = time.perf_counter() - began
    return taken, [Lake(lake).dataset(name).head_digest() or "" for name in ("images", "latents")]


def requests(address: str) -> Counter[str]:
    with urllib.request.urlopen(f"{address}/?counts") as answer:
        return Counter(json.load(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--unit", type=int, default=4000, help="rows per unit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "s3").mkdir()
        images.make(scratch / "photos", PHOTOS, 640, 480)
        save_vae(scratch / "vae")
        save_tokenizer(scratch / "tok")
        with (
            images.serving(scratch / "photos") as port,
            s3_server.serving(scratch / "s3", given.delay_ms) as environment,
        ):
            os.environ.update(environment)
            urls = [f"http://localhost:{port}/{row % PHOTOS}.jpg?{row}" for row in range(given.rows)]
            pq.write_table(pa.Table.from_pylist([{**GOOD, "url": url} for url in urls]), scratch / "links.parquet")
            jobs: dict[str, Callable[[str], tuple[PipelineStep, ...]]] = {
                "curate": lambda lake: curation(lake, scratch, port, given.unit),
                "encode": lambda lake: encoding(lake, scratch, given.unit),
            }
            places = {"local": str(scratch / "lake"), "S3": "s3://bucket/lake"}
            seconds: dict[tuple[str, str], list[float]] = {(job, place): [] for job in jobs for place in places}
            asked: dict[str, Counter[str]] = {}
            for _ in range(given.repeats):
                shutil.rmtree(scratch / "lake", ignore_errors=True)
                shutil.rmtree(scratch / "s3/bucket", ignore_errors=True)
                (scratch / "s3/bucket").mkdir()
                for job, steps in jobs.items():
                    digests = []
                    for place, lake in places.items():
                        before = requests(environment["AWS_ENDPOINT_URL"])
                        taken, published = run(lake, steps(lake))
                        digests.append(published)
                        seconds[job, place].append(taken)
                        asked[job] = requests(environment["AWS_ENDPOINT_URL"]) - before
                    if digests[0] != digests[1]:
                        raise SystemExit(f"{job}: the digests differ: {digests}")
    units = -(-given.rows // given.unit)
    print(f"{given.rows:,} images in units of {given.unit:,}, {given.delay_ms:g} ms per request")
    print("| | local, images/s | on S3, images/s | ratio | to reach | requests per unit |\n|---|---|---|---|---|---|")
    for job in jobs:
        local, remote = (given.rows / statistics.median(seconds[job, place]) for place in places)
        calls = ", ".join(f"{kind} {count / units:.1f}" for kind, count in sorted(asked[job].items()))
        print(f"| {job} | {local:.0f} | {remote:.0f} | {remote / local:.2f} | {AT_LEAST} | {calls} |")


if __name__ == "__main__":
    main()
