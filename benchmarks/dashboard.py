"""The dashboard against a real Prometheus: a curation, a training and a generation on Ray, scraped while they run.

    python -m benchmarks.dashboard [--image FILE] [--scrape-s 2]

Starts a head of Ray with two CPUs and a Prometheus that reads Ray's own file of addresses, as docs/monitoring.md has
it, both on loopback; runs the jobs of tests.whole_line on them, one after the other, with an image in three missing;
then asks every query of the dashboard (deploy.prometheus.check) and draws its panels. It needs `prometheus` on PATH
(Debian: apt-get install prometheus). Exit status 1 if a panel of a part that ran has no data.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deploy.prometheus import check
from tests.ports import free_port
from tests.ray_folder import ray_folder
from tests.whole_line import whole_line

ROOT = Path(__file__).resolve().parents[1]
ROWS_THAT_RAN = (
    "Units and rows",
    "Training",
    "Generation",
    "MLflow and nodes waited for",
    "Cluster (Ray's own metrics)",
)
CHANGES = {
    "curate": ("download.rows_per_unit=2", "download.threads=1"),
    "encode": ("encode.rows_per_unit=2",),
    "train": ("train.steps=600", "train.checkpoint_every=150", "train.log_every=10"),
    "generate": ("generate.steps=20",),
}
"""What makes the jobs of the line last long enough for some scrapes."""
LAG_S = 15.0
"""Ray's processes hand their figures over every 10 s."""


@contextlib.contextmanager
def head(folder: str) -> Iterator[dict[str, str]]:
    """Run a head of Ray for the block; yield the environment that reaches it."""
    port, dashboard = free_port(), free_port()
    environment = {
        "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"),
            *("--include-dashboard=true", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"),
            *(f"--ray-client-server-port={free_port()}", "--object-store-memory=200000000"),
        ],
        env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def prometheus(folder: Path, discovery: Path, scrape_s: float) -> Iterator[str]:
    """Run a Prometheus with the rules of deploy/prometheus for the block; yield its address."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {scrape_s:g}s, scrape_timeout: {scrape_s:g}s, evaluation_interval: 10s}}\n"
        f"scrape_configs:\n  - job_name: ray\n    file_sd_configs: [{{files: ['{discovery}'], refresh_interval: 2s}}]\n"
        f"rule_files: ['{ROOT}/deploy/prometheus/alerts.yaml']\n"
    )
    port = free_port()
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/-/ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address).close()
            return
        time.sleep(0.2)
    raise TimeoutError(address)


def run(image: Path | None, scrape_s: float) -> int:
    """Run the jobs, check the dashboard, and return the exit status of the check."""
    began = time.time()
    with tempfile.TemporaryDirectory() as name, ray_folder() as ray_tmp, head(ray_tmp) as environment:
        folder, discovery = Path(name), Path(ray_tmp) / "prom_metrics_service_discovery.json"
        while not discovery.exists():
            if time.time() > began + 120:
                raise TimeoutError(f"Ray did not write {discovery}")
            time.sleep(0.5)
        with (
            prometheus(folder, discovery, scrape_s) as url,
            whole_line(folder, vocabulary=32, missing=3, wait_s=2) as line,
        ):
            os.environ.update(environment)
            line = replace(line, execution={"backend": "ray"})
            for job, changes in CHANGES.items():
                print(line.run(job, str(folder / "lake"), *changes)[-400:], flush=True)
            time.sleep(LAG_S)
            arguments = ["--url", url, "--last", f"{time.time() - began:.0f}s", "--scrape", f"{scrape_s:g}s"]
            arguments += ["--image", str(image)] if image else []
            return check.main([*arguments, "--ran", *ROWS_THAT_RAN])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="PNG file to draw the panels into")
    parser.add_argument("--scrape-s", type=float, default=2.0, help="interval of Prometheus's scrapes (default: 2)")
    given = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("error: no prometheus on PATH. Remedy: apt-get install prometheus", file=sys.stderr)
        return 2
    return run(given.image, given.scrape_s)


if __name__ == "__main__":
    sys.exit(main())
