"""Loading: shuffled batches of latents from local disk, ours next to Ray Data, WebDataset and PyTorch's DataLoader.

    python -m benchmarks.loading [--rows N] [--side PIXELS] [--batch B] [--passes N] [--repeats N] [--s3 | --ours]

All read the same rows (float16 latents [4, S/8, S/8] and 77 token ids), as Parquet shards of a dataset version or, for
WebDataset, as tars; the files are in the page cache. Each gives shuffled batches of torch tensors to one consumer, one
thread of computation each, for some passes over the rows (ours keeps half of them in memory at most):

    ours        `training.data.loader.Loader`: chunks shuffled globally, rows in windows of 8,192; two threads read
    the same, 18 languages   with `order.language_temperature` and the same memory: each language's rows are shuffled
                for themselves; the first pass writes them to this machine's disk by language, later ones read those
    Ray Data    `read_parquet(shuffle="files")`, `iter_torch_batches` with a local shuffle buffer and a vectorised
                collate function, two CPUs
    WebDataset  shards shuffled, a shuffle buffer, `.npy` members, DataLoader in the same process
    DataLoader  an `IterableDataset` that turns the rows of shuffled row groups into tensors, out of a shuffle buffer,
                `num_workers=0`
    the same, our decoder   instead of row by row: not a peer, it shows what the decoder brings and what the rest

With `--s3`, all read from an S3 server on loopback that waits 20 ms before each answer (`benchmarks.s3_server`), one
pass cold, then one in which what they keep is warm. WebDataset streams tars through boto3, Ray Data and the DataLoader
read by Arrow's own S3 filesystem.

With `--ours`, only ours is measured, with and without languages.

Wall-clock samples/s from the first request to the last batch, processes and imports ready; in turn, medians. Only ours
verifies the pages' checksums, and only ours knows which samples batch n holds. A second table compares ours with 18
languages to ours without: over all passes, in those after the first, and in samples per CPU second of the process,
which other load on the machine hardly changes; each is the median of the ratios of the turns.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset

from altdiffusion.config import from_dict
from altdiffusion.languages import CODES
from altdiffusion.records import LATENTS as SCHEMA
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.layout import LATENTS, decode_latents
from altdiffusion.training.data.loader import Loader, open_sources
from altdiffusion.training.order.mixture import make_order, sources_of
from benchmarks.s3_server import serving

TOKENS, SHARD_ROWS, GROUP_ROWS = 77, 2048, 1024
BUFFER = 1000
WINDOW_CHUNKS, CACHE_MB = 8, 512
TEMPERATURE = 5.0
AT_LEAST, SAMPLES_PER_S, COLD_PER_S = 2.0, 5000, 2000
LANGUAGES_AT_LEAST = 0.5
OURS, BY_LANGUAGE = "ours", "the same, 18 languages"
DELAY_MS = 20.0

Way = Callable[[int, int], Iterator[int]]


def write(lake: str, rows: int, side: int, tars: Path) -> Version:
    """Return the dataset `latents` and the same rows as tars."""
    dataset, records = Lake(lake).dataset("latents"), []
    draw, shape = np.random.default_rng(0), (4, side // 8, side // 8)
    for index, first in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(rows, first + SHARD_ROWS) - first
        latents = draw.standard_normal((count, *shape), dtype=np.float32).astype("<f2")
        ids = draw.integers(0, 250_000, (count, TOKENS), dtype=np.int32)
        columns: dict[str, Any] = {
            "sample_id": np.arange(first, first + count),
            "latent": [latent.tobytes() for latent in latents],
            "token_ids": list(ids),
            "language": [CODES[number % len(CODES)] for number in range(first, first + count)],
        }
        fixed = {"channels": 4, "height": shape[1], "width": shape[2], "resolution": side}
        words = {"caption": "a picture of something", "image_sha256": "0" * 64}
        columns |= {name: [value] * count for name, value in {**fixed, **words, "crop_top": 0, "crop_left": 0}.items()}
        columns |= {name: [None] * count for name in SCHEMA.names if name not in columns}
        table = pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
        shard = dataset.write_shard(table, GROUP_ROWS)
        records.append(
            UnitRecord(
                unit_id=f"u{index}", index=index, input_digest="0" * 64, rows_in=count, shards=(shard,), rejects=(),
                rejects_by_reason={}, rows_by_language=dict(Counter(columns["language"])),
            )
        )  # fmt: skip
        with tarfile.open(tars / f"{index:05d}.tar", "w") as tar:
            for row in range(count):
                for name, value in (("latent.npy", latents[row]), ("ids.npy", ids[row])):
                    data = io.BytesIO()
                    np.save(data, value)
                    member = tarfile.TarInfo(f"{first + row:09d}.{name}")
                    member.size = data.tell()
                    data.seek(0)
                    tar.addfile(member, data)
    return dataset.publish(kind="latents", records=records, parents=[], config={}, fingerprint="f")


def ours(version: Version, batch: int, seed: int, passes: int, temperature: float | None = None) -> Iterator[int]:
    order = {"chunk_rows": GROUP_ROWS, "window_chunks": WINDOW_CHUNKS, "language_temperature": temperature}
    tree = {
        "run": "loading",
        "stage": "alignment",
        "trainable": "kv",
        "start": {"base": "none"},
        "datasets": [{"name": "latents"}],
        "seed": seed,
        "steps": passes * version.rows // batch,
        "global_batch": batch,
        "micro_batch": batch,
        "order": order,
        "workers": {"cache_mb": CACHE_MB},
    }
    config = from_dict(TrainConfig, tree)
    parts = open_sources(config, sources_of(config, [version]), LATENTS)
    loader = Loader(make_order(config, [version]), parts, stop=config.steps)
    for samples in loader:
        yield len(samples["latents"])
    loader.close()


def ray_data(version: Version, batch: int, seed: int) -> Iterator[int]:
    import ray

    paths, filesystem = shards(version)
    dataset = ray.data.read_parquet(paths, columns=list(LATENTS.columns), shuffle="files", filesystem=filesystem)
    batches = dataset.iter_torch_batches(
        batch_size=batch,
        local_shuffle_buffer_size=BUFFER,
        local_shuffle_seed=seed,
        drop_last=True,
        collate_fn=Collate(),
    )
    for tensors in batches:
        yield len(tensors["latents"])


def shards(version: Version) -> tuple[list[str], Any]:
    """Return the shards' paths, and Arrow's filesystem for them (None: the local one)."""
    from pyarrow.fs import S3FileSystem

    uris = [version.shard_uri(number) for number in range(len(version.shards))]
    if not version.uri.startswith("s3://"):
        return uris, None
    store = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], scheme="http", region="us-east-1")
    return [uri.removeprefix("s3://") for uri in uris], store


def Collate() -> Any:
    """Return a collate function without a loop over rows: our own decoder, so that it does not slow the peer down."""
    from ray.data.collate_fn import ArrowBatchCollateFn

    class Vectorised(ArrowBatchCollateFn):  # type: ignore[misc]
        def __call__(self, batch: pa.Table) -> dict[str, torch.Tensor]:
            return decode_latents(batch)

    return Vectorised()


def open_s3(url: str, *_: Any, **__: Any) -> Any:
    """Return the body of an object as a stream, for WebDataset."""
    import boto3

    bucket, _, key = url.removeprefix("s3://").partition("/")
    return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]


def web_dataset(tars: Path, batch: int, seed: int, bucket: str | None = None) -> Iterator[int]:
    import webdataset as wds

    wds.gopen_schemes["s3"] = open_s3
    urls = sorted(f"{bucket}/{path.name}" if bucket else str(path) for path in tars.glob("*.tar"))
    random.Random(seed).shuffle(urls)
    data = (
        wds.WebDataset(urls, shardshuffle=False, seed=seed)
        .shuffle(BUFFER)
        .decode()
        .to_tuple("latent.npy", "ids.npy")
        .batched(batch, partial=False)
    )
    for latents, _ in wds.WebLoader(data, batch_size=None, num_workers=0):
        yield len(latents)


class Shards(IterableDataset):  # type: ignore[misc]
    """One sample after the other, out of a shuffle buffer over shuffled row groups."""

    def __init__(self, paths: list[str], filesystem: Any, seed: int, decoder: bool) -> None:
        self.paths, self.filesystem, self.seed, self.decoder = paths, filesystem, seed, decoder

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        draw = random.Random(self.seed)
        paths = list(self.paths)
        draw.shuffle(paths)
        buffer: list[dict[str, torch.Tensor]] = []
        for path in paths:
            file = pq.ParquetFile(path, filesystem=self.filesystem)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(LATENTS.columns))
                for sample in self.vectorised(table) if self.decoder else self.plain(table):
                    if len(buffer) < BUFFER:
                        buffer.append(sample)
                        continue
                    place = draw.randrange(BUFFER)
                    buffer[place], sample = sample, buffer[place]
                    yield sample
        draw.shuffle(buffer)
        yield from buffer

    def plain(self, table: pa.Table) -> Iterator[dict[str, torch.Tensor]]:
        for row in table.to_pylist():
            latent = np.frombuffer(row["latent"], dtype="<f2").reshape(row["channels"], row["height"], row["width"])
            yield {"latents": torch.from_numpy(latent.copy()), "token_ids": torch.tensor(row["token_ids"])}

    def vectorised(self, table: pa.Table) -> Iterator[dict[str, torch.Tensor]]:
        tensors = decode_latents(table)
        for row in range(table.num_rows):
            yield {name: tensor[row] for name, tensor in tensors.items()}


def data_loader(version: Version, batch: int, seed: int, decoder: bool = False) -> Iterator[int]:
    paths, filesystem = shards(version)
    for tensors in DataLoader(Shards(paths, filesystem, seed, decoder), batch_size=batch, drop_last=True):
        yield len(tensors["latents"])


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Samples/s of several passes over the rows."""

    whole: float
    later: float
    """After the first pass."""
    cpu: float
    """Samples per CPU second of this process, all threads together."""


def rates(batches: Iterator[int], rows: int) -> Rates:
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    first: tuple[int, float] | None = None
    for samples in batches:
        count += samples
        if first is None and count > rows - samples:
            first = count, time.perf_counter()
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    whole = count / (ended - began)
    if first is None or first[0] == count:
        return Rates(whole=whole, later=whole, cpu=count / cpu)
    return Rates(whole=whole, later=(count - first[0]) / (ended - first[1]), cpu=count / cpu)


def ways(version: Version, tars: Path, given: argparse.Namespace, bucket: str | None) -> dict[str, Way]:
    """Return what is measured, by name: each takes a seed and a number of passes."""

    def again(way: Callable[[int], Iterator[int]]) -> Way:
        """Return a source of passes, each with a seed of its own."""
        return lambda seed, passes: (count for number in range(passes) for count in way(1000 * seed + number))

    return {
        OURS: lambda seed, passes: ours(version, given.batch, seed, passes),
        BY_LANGUAGE: lambda seed, passes: ours(version, given.batch, seed, passes, TEMPERATURE),
        "Ray Data": again(lambda seed: ray_data(version, given.batch, seed)),
        "WebDataset": again(lambda seed: web_dataset(tars, given.batch, seed, bucket)),
        "DataLoader": again(lambda seed: data_loader(version, given.batch, seed)),
        "the same, our decoder": again(lambda seed: data_loader(version, given.batch, seed, decoder=True)),
    }


def local(folder: str, given: argparse.Namespace) -> None:
    """Measure on a local disk, the files in the page cache and processes started, in turn."""
    tars = Path(folder) / "tars"
    measured = ways(Lake(f"{folder}/lake").version("latents"), tars, given, None)
    if given.ours:
        measured = {name: measured[name] for name in (OURS, BY_LANGUAGE)}
    for way in measured.values():
        rates(way(0, given.passes), given.rows)
    found: dict[str, list[Rates]] = {name: [] for name in measured}
    for turn in range(given.repeats):
        for name, way in measured.items():
            found[name].append(rates(way(turn + 1, given.passes), given.rows))
    if not given.ours:
        report("", {name: statistics.median(one.whole for one in each) for name, each in found.items()}, SAMPLES_PER_S)
    compare(found[OURS], found[BY_LANGUAGE])


def compare(plain: list[Rates], languages: list[Rates]) -> None:
    """Print ours with a temperature over 18 languages next to ours without."""
    print(f"{'samples/s':24}{'without':>12}{'18 languages':>14}{'ratio':>8}   to reach")
    for title, field in (("all passes", "whole"), ("after the first", "later"), ("per CPU second", "cpu")):
        values = [[getattr(one, field) for one in each] for each in (plain, languages)]
        ratio = statistics.median(other / one for one, other in zip(*values, strict=True))
        goal = "" if field == "cpu" else f"{LANGUAGES_AT_LEAST:g}"
        one, other = map(statistics.median, values)
        print(f"{title:24}{one:>12,.0f}{other:>14,.0f}{ratio:>8.2f}   {goal}".rstrip())


def remote(folder: str, given: argparse.Namespace) -> None:
    """Measure on an object store: the first pass over the rows, and the second of two in sequence."""
    with serving(Path(folder), DELAY_MS) as environment:
        os.environ.update(environment)
        measured = ways(Lake("s3://lake").version("latents"), Path(folder) / "tars", given, "s3://tars")
        passes: dict[str, list[list[float]]] = {name: [] for name in measured}
        for turn in range(given.repeats):
            for name, way in measured.items():
                passes[name].append(rates_of(way(turn + 1, 2), given.rows))
    for number, title in enumerate(("cold", "warm")):
        report(title, {name: statistics.median(r[number] for r in found) for name, found in passes.items()}, COLD_PER_S)


def rates_of(batches: Iterator[int], rows: int) -> list[float]:
    """Return the samples/s of the first pass, with its start, and of what follows."""
    began, count, rates = time.perf_counter(), 0, []
    for samples in batches:
        count += samples
        if not rates and count > rows - samples:
            rates, began, count = [count / (time.perf_counter() - began)], time.perf_counter(), 0
    return [*rates, count / (time.perf_counter() - began)]


def report(title: str, medians: dict[str, float], at_least: int) -> None:
    best = max(medians[name] for name in ("Ray Data", "WebDataset", "DataLoader"))
    print(f"{title:24}{'samples/s':>12}{'ours / it':>12}{'it / best peer':>16}   to reach")
    for name, value in medians.items():
        goal = f"{AT_LEAST:g} of the best peer, {at_least:,} samples/s" if name == OURS else ""
        print(f"{name:24}{value:>12,.0f}{medians[OURS] / value:>12.2f}{value / best:>16.2f}   {goal}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--passes", type=int, default=3, help="over the rows, in a row")
    parser.add_argument("--repeats", type=int, default=3)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--s3", action="store_true", help="read from an S3 server on loopback")
    where.add_argument("--ours", action="store_true", help="only ours, with and without languages, on a local disk")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        (Path(folder) / "tars").mkdir()
        write(f"{folder}/lake", given.rows, given.side, Path(folder) / "tars")
        print(f"latents of {given.side} px, {given.rows:,} rows, batches of {given.batch}")
        if given.ours:
            local(folder, given)
            return
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=f"{folder}/ray")
        ray.data.DataContext.get_current().enable_progress_bars = False
        (remote if given.s3 else local)(folder, given)
        ray.shutdown()


if __name__ == "__main__":
    main()
