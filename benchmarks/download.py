"""Images per CPU-second from links to shards: ours against img2dataset's own command line, one machine, one run.

    python -m benchmarks.download [--rows 1200] [--repeats 3] [--cache DIR]

1024 x 768 JPEG images like photographs from a loopback server in another process, to 256 pixels JPEG in Parquet;
16 threads, no second attempts, one process each (ours with one decoder). CPU is user + system of the program and all
its children. What a program takes to start (a run of 20 rows) is subtracted from both, to our disadvantage. The peer
trusts the usual certificate authorities and the server's, as in real use. Rows: the server keeps connections open,
as web servers do; or it closes each, so that nothing can be used again. The targets are for the former.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.download.download_work import DownloadWork, plan_download
from altdiffusion.records import LINKS
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from benchmarks import images
from tests.fetch_server import certificate

FEW = 20
SETTINGS = {"image_size": 256, "resize_mode": "keep_ratio", "encode_quality": 95, "encode_format": "jpg"}
TARGETS = {"https": 4.0, "http": 1.3}


def publish_links(lake: str, urls: list[str]) -> None:
    """Publish a links version whose rows have only a URL."""
    given = {"url": urls, "caption": ["a picture"] * len(urls), "language": ["en"] * len(urls)}
    given |= {"sample_id": list(range(len(urls))), "language_score": [1.0] * len(urls), "source": ["b"] * len(urls)}
    columns = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(len(urls), f.type) for f in LINKS]
    dataset = Lake(lake).dataset("links")
    shard = dataset.write_shard(pa.table(columns, schema=LINKS))
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=len(urls), shards=(shard,))
    dataset.publish(kind="links", records=[record], parents=[], config={}, fingerprint="f")


def work(lake: str, port: int, ca_file: str) -> None:
    """Do our side, in a process of its own: every unit of the links version."""
    config = DownloadConfig(
        **SETTINGS,  # type: ignore[arg-type]
        threads=16,
        per_host_connections=16,
        retries=0,
        ports=(port,),
        connect_to={f"localhost:{port}": f"127.0.0.1:{port}"},
        allow_private=("127.0.0.0/8",),
        ca_file=ca_file or None,
    )
    job = DownloadWork(lake=lake, dataset="images", download=config)
    job.setup()
    for unit in plan_download(Lake(lake).version("links"), 10_000):
        record = job.run(unit)
        if record.rows_out != record.rows_in:
            raise SystemExit(f"rows were rejected: {dict(record.rejects_by_reason)}")
    job.close()


def cpu_s(command: list[str], env: dict[str, str]) -> float:
    """Return the user and system seconds of a command and all its children."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{command[:3]} failed:\n{output.read().decode(errors='replace')[-3000:]}")
    return usage.ru_utime + usage.ru_stime


def ours(scratch: Path, port: int, urls: list[str], ca_file: str) -> float:
    lake = scratch / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    publish_links(str(lake), urls)
    return cpu_s([sys.executable, "-m", "benchmarks.download", "--work", str(lake), str(port), ca_file], {})


def peer(scratch: Path, port: int, urls: list[str], ca_file: str) -> float:
    out, given = scratch / "out", scratch / "urls.txt"
    shutil.rmtree(out, ignore_errors=True)
    given.write_text("".join(f"{url}\n" for url in urls))
    command = [
        str(Path(sys.executable).with_name("img2dataset")),
        "--url_list",
        str(given),
        "--output_folder",
        str(out),
    ]
    command += ["--output_format", "parquet", "--thread_count", "16", "--processes_count", "1", "--retries", "0"]
    command += ["--number_sample_per_shard", "10000", "--enable_wandb", "False", "--resize_only_if_bigger", "True"]
    command += [f"--{name}={value}" for name, value in SETTINGS.items()]
    used = cpu_s(command, {"NO_ALBUMENTATIONS_UPDATE": "1", "SSL_CERT_FILE": ca_file} if ca_file else {})
    stats = (out / "00000_stats.json").read_text()
    if f'"successes": {len(urls)}' not in stats:
        raise SystemExit(f"img2dataset failed for some rows: {stats[:500]}")
    return used


def authorities(folder: Path, name: str = "localhost") -> str:
    """Return the usual certificate authorities and that of a server of this name, in one file."""
    import certifi

    _, own = certificate(folder, name)
    bundle = folder / "authorities.pem"
    bundle.write_text(Path(certifi.where()).read_text() + own.read_text())
    return str(bundle)


def measure(arguments: argparse.Namespace, scheme: str, close: bool) -> tuple[float, float]:
    """Return images per CPU-second, ours and the peer's; medians over interleaved repeats."""
    cache = Path(arguments.cache)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        ca_file = authorities(scratch) if scheme == "https" else ""
        with images.serving(cache, tls=scratch if ca_file else None, close=close) as port:
            rows = arguments.rows
            urls = [f"{scheme}://localhost:{port}/{row % arguments.images}.jpg?{row}" for row in range(rows)]
            runs: dict[Callable[..., float], tuple[list[float], list[float]]] = {ours: ([], []), peer: ([], [])}
            for _ in range(arguments.repeats):
                for program, (few, all_) in runs.items():
                    few.append(program(scratch, port, urls[:FEW], ca_file))
                    all_.append(program(scratch, port, urls, ca_file))
    rates = [(rows - FEW) / (statistics.median(all_) - statistics.median(few)) for few, all_ in runs.values()]
    return rates[0], rates[1]


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "altdiffusion-bench-images"))
    parser.add_argument("--only", choices=("https", "http"))
    arguments = parser.parse_args()
    images.make(Path(arguments.cache), arguments.images, 1024, 768)
    print(f"{'images per CPU-second':34}{'ours':>10}{'img2dataset':>14}{'ratio':>8}{'target':>8}")
    for scheme in ("https", "http"):
        if arguments.only in (None, scheme):
            for close in (False, True):
                mine, theirs = measure(arguments, scheme, close)
                name = f"{scheme}, {'a connection per image' if close else 'connections kept'}"
                target = "" if close else f"{TARGETS[scheme]:g}"
                print(f"{name:34}{mine:>10.0f}{theirs:>14.0f}{mine / theirs:>8.2f}{target:>8}", flush=True)


if __name__ == "__main__":
    main()
