"""A place for Ray's sessions that outlives no test: neither the folder nor a process that writes into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

GRACE_S = 20.0


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """Yield a folder for Ray's RAY_TMPDIR: under /tmp, as a socket's path has at most 107 bytes.

    A node that was killed leaves its agents behind for some seconds; they are ended before the folder is removed.

    Raises:
        RuntimeError: a process still uses the folder after GRACE_S.
    """
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    try:
        yield folder
    finally:
        ends = time.monotonic() + GRACE_S
        while left := users(folder):  # again, for one of them may have started another meanwhile
            if time.monotonic() > ends:
                raise RuntimeError(f"{left} still use {folder} after {GRACE_S:g} s")
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        shutil.rmtree(folder)


@contextlib.contextmanager
def embedded_ray() -> Iterator[None]:
    """Run a Ray of two CPUs for the block, in a folder of its own."""
    from altdiffusion.execution import cluster

    with ray_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        cluster.connect(num_cpus=2)
        try:
            yield
        finally:
            cluster.shutdown()


def scraped(run: str | None = "seen") -> dict[tuple[str, str | None, str | None], float]:
    """Return the samples of the node's endpoint that are a run's, or no run's, by name, pipeline step and dataset."""
    import ray

    node = ray.nodes()[0]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name, sample.labels.get("step"), sample.labels.get("dataset")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("run") == run
    }


def users(folder: str) -> list[psutil.Process]:
    """Return the other processes that have the folder on their command line, or a file in it open."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = [*process.cmdline(), *(file.path for file in process.open_files())]  # workers rename themselves
            if any(folder in word for word in words):
                found.append(process)
    return found
