"""Peak memory of one download worker: units of 10,000 rows against units of 100,000.

    python -m benchmarks.memory [--rows 100000] [--few 10000]

Images of 192 x 144 (10 kB) from a loopback server, 2,000 host names, links in shards as long as the units; shards
of 32 MiB and a look-ahead of 16 MiB, a quarter of the defaults, so that the shorter unit fills them too. `worker` is
the process that fetches and writes, `decoder` its child; the worker before its first unit is the floor of both. The
limit: the worker's peak may grow by 20 %.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.download.download_work import DownloadWork, plan_download
from altdiffusion.storage.dataset import Lake
from benchmarks import images
from benchmarks.download import publish_links

HOSTS, LIMIT = 2000, 1.2


def peak_mib(pid: int | str = "self") -> float:
    """Return the highest resident memory of a process so far (rusage's would count what it was forked from)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def work(lake: str, port: int) -> None:
    """Run one worker, in a process of its own; print its peak before and after, its decoder's, rows and shards."""
    config = DownloadConfig(
        image_size=192,
        shard_mib=32,
        lookahead_mib=16,
        connect_to={":80": f"127.0.0.1:{port}"},
        allow_private=("127.0.0.0/8",),
    )
    job = DownloadWork(lake=lake, dataset="images", download=config)
    job.setup()
    floor, rows, shards = peak_mib(), 0, 0
    for unit in plan_download(Lake(lake).version("links"), 1 << 30):
        record = job.run(unit)
        if record.rows_out != record.rows_in:
            raise SystemExit(f"rows were rejected: {dict(record.rejects_by_reason)}")
        rows, shards = rows + record.rows_out, shards + len(record.shards)
    child = max(peak_mib(process.pid) for process in psutil.Process().children())
    print(f"{floor:.0f} {peak_mib():.0f} {child:.0f} {rows} {shards}")
    job.close()


def measure(port: int, rows: int) -> tuple[int, ...]:
    with tempfile.TemporaryDirectory() as lake:
        publish_links(lake, [f"http://h{row % HOSTS}.test/{row % 500}.jpg?{row}" for row in range(rows)])
        printed = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--work", lake, str(port)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return tuple(int(value) for value in printed.stdout.split())


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=10_000)
    arguments = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "altdiffusion-bench-small-pictures"
    images.make(folder, 500, 192, 144)
    print(f"{'peak MiB, rows per unit':24}{'at start':>10}{'worker':>10}{'decoder':>10}{'rows':>10}{'shards':>8}")
    peaks = []
    with images.serving(folder) as port:
        for rows in (arguments.few, arguments.rows):
            floor, peak, child, stored, shards = measure(port, rows)
            peaks.append(peak)
            print(f"{rows:<24,}{floor:>10}{peak:>10}{child:>10}{stored:>10,}{shards:>8}", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.2f}, limit {LIMIT:g}")


if __name__ == "__main__":
    main()
