"""How long the plan of a run over billions of rows takes, and how much memory: nothing but footers is read.

    python -m benchmarks.planner [--groups 20000]

128 parts of 20 million rows each, as LAION-2B has them. The parts hold a real Parquet footer and no rows: one row
group of LAION's joined shape is written, and its description repeated until it claims 20 million rows. `--groups` is
the number of row groups per part: 20 as Spark writes them, 320 as wide as a unit, or 20,000, which is 2.56 million in
all and more than any published set has. `plan` is `jobs.curate --dry-run`; `units` makes every unit of work as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PARTS, ROWS = 128, 20_000_000
LIMIT_S, LIMIT_MIB = 60.0, 1024.0
ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    s: float
    cpu_s: float
    mib: float
    """Peak of resident memory."""


def write_part(path: Path, groups: int) -> None:
    """Write a footer that claims ROWS rows in `groups` row groups."""
    rows = ROWS // groups
    draws = np.random.default_rng(0)
    urls = [f"https://cdn{i % 97}.example/{draws.integers(1 << 40):x}/picture-{i}.jpg" for i in range(rows)]
    table = pa.table(
        {
            "URL": urls,
            "TEXT": [f"a picture of thing number {i} in a garden" for i in range(rows)],
            "WIDTH": draws.integers(100, 2000, rows).astype(np.int32),
            "HEIGHT": draws.integers(100, 2000, rows).astype(np.int32),
            "similarity": draws.normal(0.31, 0.03, rows),
            "LANGUAGE": ["de"] * rows,
            "hash": [mmh3.hash64(url)[0] for url in urls],
            "pwatermark": draws.random(rows).astype(np.float32),
            "punsafe": draws.random(rows).astype(np.float32),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows, compression="snappy")
    one = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    whole, power = None, one  # by doubling: appending one at a time is quadratic
    left = groups
    while left:
        if left & 1:
            whole = power if whole is None else _joined(power, whole)
        left >>= 1
        power = _joined(power, power) if left else power
    assert whole is not None and whole.num_rows == ROWS and whole.num_row_groups == groups
    whole.write_metadata_file(str(path))


def _joined(first: pq.FileMetaData, second: pq.FileMetaData) -> pq.FileMetaData:
    with tempfile.NamedTemporaryFile() as copy:
        first.write_metadata_file(copy.name)
        made = pq.read_metadata(copy.name)
    made.append_row_groups(second)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=[20, 320, 20_000], nargs="*", help="row groups per part")
    arguments = parser.parse_args()
    print(f"{'':34}{'ours':>10}{'limit':>10}{'ratio':>8}")
    for groups in arguments.groups:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), groups)


def measure(folder: Path, groups: int) -> None:
    # In a process of its own: what this one holds when it starts another counts as the other's memory.
    writer = multiprocessing.get_context("spawn").Process(
        target=write_part, args=(folder / "part-00000.parquet", groups)
    )
    writer.start()
    writer.join()
    size = (folder / "part-00000.parquet").stat().st_size
    for number in range(1, PARTS):  # one file under 128 names: each is read, hashed and parsed by itself
        os.link(folder / "part-00000.parquet", folder / f"part-{number:05d}.parquet")
    (folder / "list").write_text("")
    config = folder / "curate.yaml"
    config.write_text(
        f"""name: planner
lake: {folder}/lake
sources:
  - source:
      name: relaion
      uri: {folder}/*.parquet
      preset: relaion2b-multi-research-safe
      blocklist: {folder}/list
      blocklist_sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
"""
    )
    print(f"{PARTS} parts, {groups:,} row groups of {ROWS // groups:,} rows each; a footer has {size / 2**10:,.0f} KiB")
    units = f"""
import sys
from altdiffusion.config import load_config
from altdiffusion.curation.links.sources import scan_source
from altdiffusion.curation.links.sources import plan_sources
from pipelines.curate import CurateConfig
sources = load_config(CurateConfig, {str(config)!r}).sources
units = plan_sources([scan_source(entry.source, entry.select) for entry in sources])
print(f"{{len(units):,}} units, {{sum(u.payload['stop'] - u.payload['start'] for u in units):,}} rows")
"""
    for name, command in (
        ("plan", ["-m", "jobs.curate", "--config", str(config), "--dry-run"]),
        ("units", ["-c", units]),
    ):
        cost, output = run(command)
        if name == "plan" and f"{PARTS * ROWS:,} rows" not in output:
            raise SystemExit(f"the dry run did not count the rows:\n{output}")
        for what, value, limit in (("s", cost.s, LIMIT_S), ("MiB", cost.mib, LIMIT_MIB)):
            print(f"  {name + ', ' + what:32}{value:>10,.1f}{limit:>10,.0f}{value / limit:>8.2f}")
        printed = [line.strip() for line in output.splitlines() if f"{PARTS * ROWS:,} rows" in line]
        print(f"    {printed[0] if printed else ''}; {cost.cpu_s:.1f} s of CPU")


def run(command: list[str]) -> tuple[Cost, str]:
    """Return the cost of a fresh process that runs this, from its first import to its end, and its output."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise SystemExit(output)
    return Cost(s=wall, cpu_s=usage.ru_utime + usage.ru_stime, mib=usage.ru_maxrss / 1024), output


if __name__ == "__main__":
    main()
