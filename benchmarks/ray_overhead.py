"""What Ray costs: the same units done in this process, and on Ray Data by two workers.

    python -m benchmarks.ray_overhead [--cache DIR] [--rows N] [--units N] [--repeats N]

The units are those of `benchmarks.select_rows` (read, filter, identify, write), each worker with one thread. In this
process: wall-clock seconds of `run_units(backend="inline")`. On Ray: those of `run_units(backend="ray")` with a pool of
two on two CPUs, ledger and progress included, from the call to the last record. Ray itself is started before, as a
cluster is; `whole` has the start of the pool in it (a fixed cost: processes, imports, the language model), `steady` is
the rate between the first and the last record of each. In turn, medians.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.links.select_work import SelectWork
from altdiffusion.curation.links.sources import plan_sources, scan_source
from altdiffusion.execution import cluster
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Backend, Pool, Unit
from altdiffusion.storage.dataset import Lake
from benchmarks.select_rows import SELECT, SourceConfig, write_part
from demo.npm import default_cache

AT_LEAST = 0.85
WORKERS = 2


class Stopwatch(Progress):
    """Notes when records come."""

    def __init__(self) -> None:
        super().__init__("benchmark", stream=io.StringIO())
        self.moments: list[float] = []
        self.rows: list[int] = []

    def advance(self, rows: int, kept: int | None = None, units: int = 1) -> None:
        self.moments.append(time.perf_counter())
        self.rows.append(rows)


class OneThread(SelectWork):
    """A worker that keeps to one core, so that two of them need two."""

    def setup(self) -> None:
        import pyarrow as pa

        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        super().setup()


def measure(source: SourceConfig, units: list[Unit], scratch: Path, backend: Backend) -> tuple[float, float]:
    """Return rows per second: of the whole call, and from the first record to the last."""
    lake = Lake(str(scratch))
    work = OneThread(lake=lake.uri, dataset="d", source=source, select=SELECT, language=LanguageConfig())
    watch = Stopwatch()
    start = time.perf_counter()
    run_units(
        work,
        units,
        {"d": lake.dataset("d").ledger("f")},
        backend=backend,
        pool=Pool(min_size=WORKERS, max_size=WORKERS),
        progress=watch,
    )
    whole = sum(watch.rows) / (time.perf_counter() - start)
    return whole, sum(watch.rows[1:]) / (watch.moments[-1] - watch.moments[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of one unit")
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="b") as folder:
        os.environ.setdefault("RAY_TMPDIR", folder)
        scratch = Path(folder)
        part = scratch / "part-00000.parquet"
        write_part(part, arguments.cache, arguments.rows)
        source = SourceConfig(name="benchmark", uri=str(part), preset="laion-joined", rows_per_unit=arguments.rows)
        whole_unit = plan_sources([scan_source(source)])[0]
        units = [
            Unit(id=f"{number:08d}-{whole_unit.id[9:]}", index=number, payload=whole_unit.payload)
            for number in range(arguments.units)
        ]
        cluster.connect(num_cpus=WORKERS)
        inline, ray = [], []
        for repeat in range(arguments.repeats):
            inline.append(measure(source, units[: len(units) // WORKERS], scratch / f"inline-{repeat}", "inline"))
            ray.append(measure(source, units, scratch / f"ray-{repeat}", "ray"))
        cluster.shutdown()
    print(f"{'rows/s':10}{'Ray, 2 workers':>16}{'in-process':>12}{'limit (2 x)':>13}{'ratio':>8}   to reach {AT_LEAST}")
    for number, name in enumerate(("whole", "steady")):
        ours, peer = (statistics.median(found[number] for found in runs) for runs in (ray, inline))
        print(f"{name:10}{ours:>16,.0f}{peer:>12,.0f}{WORKERS * peer:>13,.0f}{ours / (WORKERS * peer):>8.2f}")


if __name__ == "__main__":
    main()
