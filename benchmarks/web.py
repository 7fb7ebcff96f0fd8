"""The slow web: links to shards, where hosts answer late, never, or one piece per second. Ours and img2dataset.

    python -m benchmarks.web [--scheme http] [--at-a-time 128] [--who ours,img2dataset] [--rows N] [--profile]

1,500 host names on loopback (`web_server`, in another process whose CPU does not count), one connection per answer,
no second attempts, deadline 10 s; 800 x 600 JPEG images like photographs to 256 pixels JPEG in Parquet. One process
each, ours with as many decoders as `auto` means. `wall` and `CPU` (user and system, children too) include the start
of the program. `worker` is the largest process's peak memory, `all` the peak of all its processes together, shared
pages counted in each. `limit` decodes, resizes and encodes the same bodies in one process without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from altdiffusion.config import semantic
from altdiffusion.curation.config import DownloadConfig
from benchmarks import images, web_profile, web_server
from benchmarks.download import SETTINGS, authorities, publish_links

HOSTS, IMAGES, DEADLINE_S = 1500, 300, 10
ROWS = {128: 3000, 512: 6000, 2048: 10_000}
WHO = ("ours", "ours, no robots.txt", "img2dataset")
_NAMES = str(Path(__file__).with_name("loopback_names"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of one program."""

    who: str
    scheme: str
    at_a_time: int
    urls: list[str]
    port: int
    ca_file: str
    parts: bool = False
    """Whether it runs under the profiler."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run took."""

    images: int
    wall_s: float
    cpu_s: float
    worker_mib: float
    all_mib: float


def run_ours(case: Case, scratch: Path) -> tuple[Figures, str]:
    lake = scratch / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    publish_links(str(lake), case.urls)
    settings = {
        **SETTINGS,
        "threads": case.at_a_time,
        "retries": 0,
        "deadline_s": float(DEADLINE_S),
        "honor_robots": "no robots" not in case.who,
        "ports": [case.port],
        "allow_private": ["127.0.0.0/8"],
        "ca_file": case.ca_file or None,
    }
    command = [sys.executable, "-m", "benchmarks.web_worker", str(lake), json.dumps(settings)]
    return _measured([*command, *(["--parts"] if case.parts else [])], {}, lambda printed: int(printed[0]))


def run_peer(case: Case, scratch: Path) -> tuple[Figures, str]:
    out, given = scratch / "out", scratch / "urls.txt"
    shutil.rmtree(out, ignore_errors=True)
    given.write_text("".join(f"{url}\n" for url in case.urls))
    program = str(Path(sys.executable).with_name("img2dataset"))
    command = [program, "--url_list", str(given), "--output_folder", str(out), "--output_format", "parquet"]
    command += ["--thread_count", str(case.at_a_time), "--processes_count", "1", "--retries", "0"]
    command += ["--timeout", str(DEADLINE_S), "--number_sample_per_shard", "10000", "--enable_wandb", "False"]
    command += ["--resize_only_if_bigger", "True", *(f"--{name}={value}" for name, value in SETTINGS.items())]
    env = {"NO_ALBUMENTATIONS_UPDATE": "1"} | ({"SSL_CERT_FILE": case.ca_file} if case.ca_file else {})
    return _measured(command, env, lambda _: _successes(out))


def _successes(out: Path) -> int:
    return sum(int(json.loads(path.read_text())["successes"]) for path in out.glob("*_stats.json"))


def _measured(command: list[str], env: dict[str, str], count: Callable[[list[str]], int]) -> tuple[Figures, str]:
    """Run a program to its end; return its figures and what it printed behind the number of images."""
    paths = os.pathsep.join(filter(None, [_NAMES, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": paths, **env}, stdout=output, stderr=errors
        )
        peaks = _Peaks(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks.stop()
        output.seek(0)
        errors.seek(0)
        printed = output.read()
        if process.returncode:
            raise SystemExit(f"{command[:4]} failed:\n{printed[-1000:]}{errors.read()[-3000:]}")
    figures = Figures(
        images=count(printed.splitlines()),
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        worker_mib=peaks.largest / (1 << 20),
        all_mib=peaks.all / (1 << 20),
    )
    return figures, printed.partition("\n")[2]


class _Peaks:
    """The resident memory of a process and its children, looked at five times per second."""

    def __init__(self, pid: int) -> None:
        self.largest = self.all = 0
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            sizes = []
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    sizes.append(process.memory_info().rss)
            except psutil.Error:
                continue
            self.largest, self.all = max(self.largest, *sizes), max(self.all, sum(sizes))


def limit(folder: Path) -> float:
    """Return images per CPU-second of the decoder alone, on the bodies of a folder."""
    from altdiffusion.curation.images.decoder_process import Decoder

    decoder = Decoder(semantic(DownloadConfig(**SETTINGS)))  # type: ignore[arg-type]
    bodies = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:IMAGES]]
    for body in bodies[:20]:
        decoder(body)
    start = time.process_time()
    for body in bodies * 3:
        decoder(body)
    return 3 * len(bodies) / (time.process_time() - start)


def cases(given: argparse.Namespace, scheme: str, port: int, ca_file: str) -> list[Case]:
    made = []
    for at_a_time in given.at_a_time:
        rows = given.rows or ROWS.get(at_a_time, 24 * at_a_time)
        urls = [f"{scheme}://h{row * 7 % HOSTS}.web.test:{port}/{row % IMAGES}.jpg?{row}" for row in range(rows)]
        for who in given.who:
            made.append(Case(who=who, scheme=scheme, at_a_time=at_a_time, urls=urls, port=port, ca_file=ca_file))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", nargs="+", choices=("http", "https"), default=["http", "https"])
    parser.add_argument("--at-a-time", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--rows", type=int, help="links of a case (default 3,000, 6,000 and 10,000)")
    parser.add_argument("--profile", action="store_true", help="print where our CPU goes, from a run of its own")
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "altdiffusion-bench-web"))
    given = parser.parse_args()
    folder = Path(given.cache)
    images.make(folder, IMAGES, 800, 600)
    print(f"limit: decoding, resizing and encoding alone: {limit(folder):.0f} images per CPU-second")
    head = f"{'':7}{'at a time':>10}  {'':20}{'links':>7}{'images':>8}{'wall s':>8}{'CPU s':>8}"
    print(f"{head}{'images/CPU-s':>14}{'worker MiB':>12}{'all MiB':>9}", flush=True)
    for scheme in given.scheme:
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            ca_file = authorities(scratch, "*.web.test") if scheme == "https" else ""
            with web_server.serving(folder, tls=scratch if ca_file else None, web=web_server.Web()) as port:
                for case in cases(given, scheme, port, ca_file):
                    run = run_peer if case.who == "img2dataset" else run_ours
                    found, more = run(case, scratch)
                    print(
                        f"{scheme:7}{case.at_a_time:>10}  {case.who:20}{len(case.urls):>7,}{found.images:>8,}"
                        f"{found.wall_s:>8.1f}{found.cpu_s:>8.1f}{found.images / found.cpu_s:>14.1f}"
                        f"{found.worker_mib:>12.0f}{found.all_mib:>9.0f}",
                        flush=True,
                    )
                    if given.profile and case.who != "img2dataset":
                        web_profile.show(more, run(replace(case, parts=True), scratch)[1])


if __name__ == "__main__":
    main()
