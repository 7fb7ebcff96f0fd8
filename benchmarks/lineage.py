"""Lineage commands on a lake of 2,000 versions and 10,000 checkpoints: CPU, memory, and what they ask of the storage.

    python -m benchmarks.lineage [--versions 2000] [--checkpoints 10000] [--s3] [--rows N]

The lake is made by the command: one dataset of 40 series of 50 versions, each made from the one before it, and runs of
100 checkpoints, each run trained on one version and started from another run. Each command is a process of its own,
measured from its first import to its end: first without an index, which it then writes, and again with it.

With `--rows N`, a lake of N links is made as well, and a list of 1,000 ids, spread over all of them, is asked for: once
while the index of rows is made, and again with it.

With `--s3`, an S3 server on loopback (`benchmarks.s3_server`) also serves the lake, and adds 20 ms to each request;
what counts there is wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.execution.pipeline_step import Output, PipelineStep, published
from altdiffusion.records import SCHEMAS
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.seals import seal
from altdiffusion.storage.shards import NARROW_GROUP_ROWS

ROOT = Path(__file__).resolve().parents[1]
CPU_S, MIB, S3_S = 5.0, 300.0, 60.0
ROWS_S, ROWS_MIB, ASKED = 10.0, 1024.0, 1000
SHARD_ROWS = 1 << 18
SERIES, STEPS = 50, 100
SOURCE = Ref("source", "crawl", "5" * 64)
BASE = Ref("model", "base", "b" * 64)
_URL = "http://pictures.example/{}.png"


class Cost(NamedTuple):
    s: float
    cpu_s: float
    mib: float
    """Peak of resident memory."""
    calls: str


def make_lake(uri: str, versions: int, checkpoints: int) -> None:
    """Write the lake through the real storage; without fsync, which is not measured here."""
    os.fsync = lambda _: None
    lake = Lake(uri)
    refs = make_versions(lake, versions)
    runs = -(-checkpoints // STEPS)
    last: dict[int, Ref] = {}
    for run in range(runs):
        parents = [last[run - 10] if run >= 10 else BASE, refs[run * len(refs) // runs]]
        for step in range(1, min(STEPS, checkpoints - run * STEPS) + 1):
            last[run] = write_checkpoint(lake, f"run-{run:04d}", step * 100, parents)


def make_versions(lake: Lake, count: int) -> list[Ref]:
    """Publish versions of the dataset `links`, of ten rows each."""
    dataset, refs = lake.dataset("links"), []
    schema = SCHEMAS["links"]
    for number in range(count):
        rows = [{field.name: _value(field, 10 * number + i) for field in schema} for i in range(10)]
        shard = dataset.write_shard(pa.Table.from_pylist(rows, schema=schema))
        record = UnitRecord(
            unit_id="u0", index=0, input_digest="0" * 64, rows_in=10, shards=(shard,), rejects=(),
            rejects_by_reason={}, rows_by_language={"en": 10},
        )  # fmt: skip
        version = dataset.publish(
            kind="links",
            records=[record],
            parents=[refs[-1] if number % SERIES else SOURCE],
            config=settings(number),
            fingerprint=Output(dataset="links", kind="links", settings=settings(number)).fingerprint,
            made_by="retry",
        )
        refs.append(version.ref)
    return refs


def make_rows(uri: str, count: int) -> None:
    """Publish one version of `links` with this number of rows, whose ids are in no order; without fsync."""
    os.fsync = lambda _: None
    dataset, schema, shards = Lake(uri).dataset("links"), SCHEMAS["links"], []
    for start in range(0, count, SHARD_ROWS):
        numbers = np.arange(start, min(start + SHARD_ROWS, count))
        columns = {field.name: pa.array([_value(field, 0)] * len(numbers), field.type) for field in schema}
        columns["sample_id"] = pa.array(row_ids(numbers))
        columns["url"] = pa.array([_URL.format(number) for number in numbers.tolist()])
        table = pa.table([columns[field.name] for field in schema], schema=schema)
        shards.append(dataset.write_shard(table, NARROW_GROUP_ROWS))
    record = UnitRecord(
        unit_id="u0", index=0, input_digest="0" * 64, rows_in=count, shards=tuple(shards), rejects=(),
        rejects_by_reason={}, rows_by_language={"en": count},
    )  # fmt: skip
    dataset.publish(kind="links", records=[record], parents=[SOURCE], config={}, fingerprint="f" * 64, made_by="rows")


def row_ids(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return distinct ids that look like hashes: a product with an odd number, modulo 2 to the power of 64."""
    return (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def measure_rows(folder: Path, count: int) -> None:
    """Make a lake of rows, ask it twice for 1,000 ids, and print the costs."""
    lake = str(folder / "rows")
    make = [sys.executable, "-m", "benchmarks.lineage", "--make-rows", str(count), "--lake", lake]
    subprocess.run(make, cwd=ROOT, env=environment_of(folder), check=True)
    asked = row_ids(np.linspace(0, count - 1, ASKED).astype(np.int64))
    (folder / "ids").write_text("".join(f"hash:{number}\n" for number in asked.tolist()))
    command = ["altdiffusion.cli", "lineage", "impact", "--hashes", str(folder / "ids"), "--lake", lake]
    names = ("index made", "indexed")
    costs = {name: run(lake, folder, command, environment_of(folder)) for name in names}
    size = sum(path.stat().st_size for path in Path(lake, "index", "rows").glob("*.rows"))
    print(f"{ASKED:,} ids of {count:,} rows; the index has {size / 1e6:,.0f} MB")
    for name, cost in costs.items():
        print(
            f"  {name:12}{cost.cpu_s:>8.1f} s of CPU (limit {ROWS_S:.0f}), {cost.s:.1f} s wall, "
            f"{cost.mib:,.0f} MiB (limit {ROWS_MIB:,.0f}); {cost.calls}"
        )


def settings(number: int) -> dict[str, Any]:
    """Return a config of about the size of a real one."""
    return {"number": number, **{f"setting_{i}": f"value {i} of a config as long as real ones are" for i in range(40)}}


def _value(field: pa.Field, number: int) -> Any:
    named = {"sample_id": number, "url": _URL.format(number), "caption": f"thing {number}", "language": "en"}
    if field.name in named:
        return named[field.name]
    if field.nullable:
        return None
    if pa.types.is_string(field.type):
        return ""
    return b"" if pa.types.is_binary(field.type) else [] if pa.types.is_list(field.type) else 0


def write_checkpoint(lake: Lake, run: str, step: int, parents: Sequence[Ref]) -> Ref:
    """Write a checkpoint's description, with tensors that it only names."""
    folder = files.join(lake.uri, "checkpoints", run, f"step-{step:08d}")
    state = files.canonical_json({"step": step, "config_fingerprint": files.sha256_hex(run.encode())})
    files.write_atomic(files.join(folder, "state.json"), state)
    tensors: dict[str, dict[str, Any]] = {
        f"unet-{i:05d}.safetensors": {"sha256": f"{i:064x}", "bytes": 10**9} for i in range(8)
    }
    tensors["state.json"] = {"sha256": files.sha256_hex(state), "bytes": len(state)}
    head = {
        "files": tensors, "parents": [str(parent) for parent in parents], "run": run, "step": step,
        "stage": "alignment", "config_fingerprint": files.sha256_hex(run.encode()),
    }  # fmt: skip
    complete = seal(head)
    files.write_atomic(files.join(folder, "COMPLETE.json"), files.canonical_json(complete))
    return Ref("checkpoint", f"{run}/step-{step:08d}", complete["digest"])


def find_published(lake: Lake, number: int) -> None:
    """Look up what a job looks up before it runs: whether the version was made already."""
    before = read_ref(lake, number - 1)
    step = PipelineStep(
        name="retry", outputs=(Output(dataset="links", kind="links", settings=settings(number)),), noun="rows",
        parents=lambda _: [before], units=lambda _: (), work=lambda _: None,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    found = published(lake, step)
    assert found is not None and found[0].manifest.config["number"] == number


def read_ref(lake: Lake, number: int) -> Ref:
    """Return the reference that the file of references names (`--refs`)."""
    return Ref.parse(json.loads(Path(os.environ["BENCHMARK_REFS"]).read_text())[number])


def measure(lake: str, folder: Path, versions: int, environment: dict[str, str]) -> dict[str, Cost]:
    """Return the cost of each command, first without and then with an index."""
    (folder / "list").write_text("".join(f"url:{_URL.format(number)}\n" for number in range(0, 10 * versions, 997)))
    middle = versions // 2 // SERIES * SERIES + 1
    cli = "altdiffusion.cli"
    commands = {
        "lineage up, no index": [cli, "lineage", "up", "run-0000", "--lake", lake],
        "lineage up": [cli, "lineage", "up", "run-0000", "--lake", lake],
        "lineage down": [cli, "lineage", "down", f"{SOURCE}", "--lake", lake],
        "lineage impact": [cli, "lineage", "impact", "--hashes", str(folder / "list"), "--lake", lake],
        "published": ["benchmarks.lineage", "--find", str(middle), "--lake", lake],
        "dataset list": [cli, "dataset", "list", "--lake", lake],
    }
    return {name: run(lake, folder, command, environment) for name, command in commands.items()}


def run(lake: str, folder: Path, command: list[str], environment: dict[str, str]) -> Cost:
    """Return the cost of a fresh process that runs a module."""
    counts = folder / "counts.json"
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storage_calls", lake, str(counts), *command],
            cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        output = printed.read()
    if process.returncode not in (0, 3):  # 3: the checkpoints of this lake state no order of rows
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-4000:]}")
    numbers = json.loads(counts.read_text())
    calls = ", ".join(f"{numbers.get(kind, 0):,} {kind}" for kind in ("exists", "list", "read"))
    return Cost(s=wall, cpu_s=usage.ru_utime + usage.ru_stime, mib=usage.ru_maxrss / 1024, calls=calls)


def show(costs: dict[str, Cost], where: str) -> None:
    """Print ours, the limit, the ratio and the calls."""
    print(f"{where:34}{'ours':>10}{'limit':>10}{'ratio':>8}")
    for name, cost in costs.items():
        rows = [("s", cost.s, S3_S)] if where == "S3" else [("CPU s", cost.cpu_s, CPU_S), ("MiB", cost.mib, MIB)]
        for what, value, limit in rows:
            print(f"  {name + ', ' + what:32}{value:>10,.1f}{limit:>10,.0f}{value / limit:>8.2f}")
        print(f"    {cost.calls}; {cost.s:.1f} s wall, {cost.cpu_s:.1f} s of CPU, {cost.mib:,.0f} MiB")


def on_s3(local: str, folder: Path, versions: int) -> None:
    """Serve the lake by an S3 server, without its index, and measure there."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.s3_server", "--root", str(folder), "--port", str(port)],
        cwd=ROOT, env=environment_of(folder), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{endpoint}/{Path(local).name}?list-type=2&max-keys=1").close()
                break
            except OSError:
                time.sleep(0.2)
        files.remove_tree(files.join(local, "index"))
        access = {
            "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }  # fmt: skip
        show(measure(f"s3://{Path(local).name}", folder, versions, {**environment_of(folder), **access}), "S3")
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment_of(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "BENCHMARK_REFS": str(folder / "refs.json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=2000)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--s3", action="store_true", help="also measure on an S3 server")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="also ask for 1,000 ids of N rows")
    parser.add_argument("--make-rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--find", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--lake", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.find is not None:
        find_published(Lake(arguments.lake), arguments.find)
        return
    if arguments.make:
        make_lake(arguments.lake, arguments.versions, arguments.checkpoints)
        return
    if arguments.make_rows is not None:
        make_rows(arguments.lake, arguments.make_rows)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.rows:
            measure_rows(folder, arguments.rows)
        if not arguments.versions:
            return
        lake = str(folder / "lake")
        sizes = ["--versions", str(arguments.versions), "--checkpoints", str(arguments.checkpoints)]
        make = [sys.executable, "-m", "benchmarks.lineage", "--make", "--lake", lake, *sizes]
        subprocess.run(make, cwd=ROOT, env=environment_of(folder), check=True)
        refs = Lake(lake).dataset("links").digests()
        numbered = {Lake(lake).version(f"links@{digest}").manifest.config["number"]: digest for digest in refs}
        ordered = [f"dataset:links@{numbered[number]}" for number in range(arguments.versions)]
        (folder / "refs.json").write_text(json.dumps(ordered))
        print(f"{arguments.versions:,} versions, {arguments.checkpoints:,} checkpoints")
        show(measure(lake, folder, arguments.versions, environment_of(folder)), "local")
        if arguments.s3:
            on_s3(lake, folder, arguments.versions)


if __name__ == "__main__":
    main()
