"""Lineage commands on a lake of 2,000 versions and 10,000 checkpoints: CPU, memory, and what they ask of the storage.

    python -m benchmarks.lineage [--versions 2000] [--checkpoints 10000] [--s3] [--s3-python PYTHON]

The lake is made by the command: one dataset of 40 series of 50 versions, each made from the one before it, and runs of
100 checkpoints, each run trained on one version and started from another run. Each command is a process of its own,
measured from its first import to its end: first without an index, which it then writes, and again with it.

With `--s3`, the lake is copied to an S3 server on loopback (moto's, started by this command) that adds 20 ms to each
request; what counts there is wall-clock time. `--s3-python` is the Python that has `moto[server]`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from altdiffusion.execution.pipeline_step import Output, PipelineStep, published
from altdiffusion.records import SCHEMAS
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.seals import seal

ROOT = Path(__file__).resolve().parents[1]
CPU_S, MIB, S3_S = 5.0, 300.0, 60.0
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
    tensors = {f"unet-{i:05d}.safetensors": {"sha256": f"{i:064x}", "bytes": 10**9} for i in range(8)}
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
    if process.returncode:
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


def on_s3(local: str, folder: Path, versions: int, python: str) -> None:
    """Copy the lake to an S3 server and measure there."""
    import s3fs

    port = 5599
    server = subprocess.Popen(
        [python, str(ROOT / "benchmarks" / "s3_server.py"), "--port", str(port), "--delay-ms", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{endpoint}/delay/0").close()
                break
            except OSError:
                time.sleep(0.2)
        access = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_ENDPOINT_URL": endpoint}
        os.environ.update(access)
        fs = s3fs.S3FileSystem()
        fs.mkdir("lake")
        files.remove_tree(files.join(local, "index"))
        fs.put(f"{local}/", "lake/", recursive=True)
        urllib.request.urlopen(f"{endpoint}/delay/20").close()
        show(measure("s3://lake", folder, versions, {**environment_of(folder), **access}), "S3")
    finally:
        server.terminate()
        server.wait()


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
    parser.add_argument(
        "--s3-python", default=sys.executable, metavar="PYTHON", help="the Python that has moto[server]"
    )
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
            on_s3(lake, folder, arguments.versions, arguments.s3_python)


if __name__ == "__main__":
    main()
