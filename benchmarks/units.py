"""LAION's size: 400,000 units of no work through Ray Data on three nodes of this machine, what 4.1 billion rows make.

    python -m benchmarks.units [--units N] [--s3]

Every unit records 10,000 rows in 18 languages, and all of them share one shard, so that only what each unit costs by
itself is left. Prints units per second, the driver's peak memory, and what a start costs when all units but one are
recorded: by a new process, which lists and reads the ledger, does that unit and publishes. With `--s3`, the start is
measured again on the same lake behind an S3 server on loopback that waits before each answer.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow as pa

from altdiffusion.execution import cluster
from altdiffusion.execution.pipeline_step import Output, PipelineStep, run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.units import Pool, Resources, Unit
from altdiffusion.languages import CODES
from altdiffusion.records import SCHEMAS
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import ShardInfo
from benchmarks.s3_server import serving

ROWS = 10_000
VALUES = {"string": "en", "int64": 1, "int32": 1, "double": 0.5, "float": 0.5}
NODES = 3
UNITS_PER_S, DRIVER_GIB, START_S, START_S3_S, PUBLISH_S = 500, 2, 60, 180, 120


class Nothing:
    """The work of a unit that only records."""

    def __init__(self, shard: ShardInfo) -> None:
        self.shard = shard

    def setup(self) -> None:
        """Have nothing to load."""

    def run(self, unit: Unit) -> UnitRecord:
        """Return the record that a selection of 10,000 rows leaves, without its rejects."""
        each, rest = divmod(ROWS, len(CODES))
        languages = {code: each + (place < rest) for place, code in enumerate(CODES)}
        return UnitRecord(
            unit_id=unit.id,
            index=unit.index,
            input_digest=f"{unit.index:064x}",
            rows_in=ROWS,
            shards=(self.shard,),
            rows_by_language=languages,
            tally={f"words/{code}/{number}": number + unit.index % 7 for code in CODES for number in range(4)},
        )


class Stopwatch(Progress):
    """Notes when units begin and when the last one ends."""

    def __init__(self) -> None:
        super().__init__("units", stream=io.StringIO())
        self.began = self.ended = self.first = 0.0
        self.count = 0

    def begin(self, total_units: int, skipped_units: int = 0) -> None:
        super().begin(total_units, skipped_units)
        self.began = time.perf_counter()

    def advance(self, rows: int, kept: int | None = None, units: int = 1) -> None:
        super().advance(rows, kept, units)
        self.ended = time.perf_counter()
        self.first = self.first or self.ended
        self.count += units


def pipeline_step(lake: Lake, count: int) -> PipelineStep:
    """Return the pipeline step of `count` units that share one shard."""
    schema = SCHEMAS["links"]
    rows = [{field.name: VALUES.get(str(field.type)) for field in schema}] * ROWS
    shard = lake.dataset("links").write_shard(pa.Table.from_pylist(rows, schema=schema))
    return PipelineStep(
        name="select",
        outputs=(Output(dataset="links", kind="links", settings={"benchmark": "units"}),),
        noun="rows",
        parents=lambda _: (),
        units=lambda _: units(count),
        work=lambda _: Nothing(shard),
        pool=Pool(min_size=NODES, max_size=NODES),
        resources=Resources(num_cpus=1),
    )


def units(count: int) -> Sequence[Unit]:
    """Return units with a payload as large as that of a range of a Parquet file."""
    payload = {"uri": "s3://bucket/laion/part-00000-of-00128.parquet", "row_groups": [0, 1], "rows": [0, ROWS]}
    return [
        Unit(id=f"{number:08d}-{number:016x}", index=number, payload={**payload, "digest": f"{number:064x}"})
        for number in range(count)
    ]


def phase(uri: str, count: int, address: str | None) -> None:
    """Run the pipeline step in this process, and print what it cost as JSON."""
    lake, watch = Lake(uri), Stopwatch()
    step = pipeline_step(lake, count)
    if address is not None:
        cluster.connect(address)
    start = time.perf_counter()
    run_pipeline_step(lake, step, backend="inline" if address is None else "ray", progress=watch)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "units": watch.count,
        "start_s": watch.began - start,
        "run_s": watch.ended - watch.began,
        "steady_s": watch.ended - watch.first,
        "publish_s": end - watch.ended,
        "cpu_s": peak.ru_utime + peak.ru_stime,
        "peak_gib": peak.ru_maxrss / 2**20,
    }
    print(json.dumps(cost))


def run_phase(uri: str, count: int, address: str | None, env: dict[str, str] | None = None) -> dict[str, float]:
    """Run a phase in a process of its own and return what it cost."""
    command = [sys.executable, "-m", "benchmarks.units", "--phase", uri, "--units", str(count)]
    done = subprocess.run(
        [*command, *(["--address", address] if address else [])],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cost: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return cost


def killed(lake: Path) -> None:
    """Bring a finished lake to the state before its last unit: one record less, and no version."""
    (ledger,) = (lake / "datasets/links/ledger").iterdir()
    random.Random(0).choice(sorted(ledger.glob("*.json"))).unlink()
    shutil.rmtree(lake / "datasets/links/versions")


def line(what: str, value: float, unit: str, bound: float, *, at_least: bool = False) -> None:
    """Print a figure next to what is to be reached."""
    print(f"{what:52}{value:>10,.1f} {unit:8} to reach: {'at least' if at_least else 'at most'} {bound:,} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=400_000)
    parser.add_argument("--s3", action="store_true", help="measure the start on an S3 server too")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="what the S3 server waits before each answer")
    parser.add_argument("--phase", metavar="URI", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        phase(arguments.phase, arguments.units, arguments.address)
        return
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="u") as folder:
        os.environ.setdefault("RAY_TMPDIR", folder)
        lake = Path(folder, "bucket", "lake")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 500 * 2**20})
        for _ in range(NODES):
            nodes.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        cost = run_phase(str(lake), arguments.units, nodes.address)
        nodes.shutdown()
        print(f"{arguments.units:,} units, {NODES} nodes of one CPU each, on {os.cpu_count()} cores\n")
        line(
            "units per second, with the start of the pool",
            cost["units"] / cost["run_s"],
            "units/s",
            UNITS_PER_S,
            at_least=True,
        )
        line(
            "units per second after the first", cost["units"] / cost["steady_s"], "units/s", UNITS_PER_S, at_least=True
        )
        line("driver, peak memory", cost["peak_gib"], "GiB", DRIVER_GIB)
        line("publishing", cost["publish_s"], "s", PUBLISH_S)
        killed(lake)
        cost = run_phase(str(lake), arguments.units, None)
        line("a start with all units but one recorded", cost["start_s"], "s", START_S)
        line("publishing then", cost["publish_s"], "s", PUBLISH_S)
        line("peak memory", cost["peak_gib"], "GiB", DRIVER_GIB)
        if arguments.s3:
            with serving(Path(folder), arguments.delay_ms) as access:
                # The pages are those of a folder, so that the first start there reads every record; a second has pages.
                for which in ("a first start", "a start"):
                    killed(lake)
                    cost = run_phase("s3://bucket/lake", arguments.units, None, access)
                    line(f"{which}, {arguments.delay_ms:g} ms per request", cost["start_s"], "s", START_S3_S)
                    line("publishing then", cost["publish_s"], "s", PUBLISH_S)


if __name__ == "__main__":
    main()
