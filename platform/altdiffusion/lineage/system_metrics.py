"""CPU, memory, disk, network and GPUs of the driver's machine while a job runs, measured by MLflow's own monitors.

They need psutil, and for GPUs nvidia-ml-py. The values go through the job's journal like all that it records: so an
outage of MLflow loses none, and a rebuilt store has them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from altdiffusion.errors import first_line

log = logging.getLogger(__name__)

EVERY_S = 60.0
SAMPLES = 6
"""Measurements of which each recorded value is the mean."""


class SystemMetrics:
    """A thread that measures the machine until it is stopped.

    Args:
        record: called with a step and the metrics; the step is the number of intervals since the run's first start, so
            that it goes on after a restart.
        start_ms: the first start of the run, in milliseconds since the epoch.
        every_s: seconds per interval.
    """

    def __init__(
        self, record: Callable[[int, Mapping[str, float]], None], start_ms: int, every_s: float = EVERY_S
    ) -> None:
        self._record = record
        self._start_s = start_ms / 1000
        self._every_s = every_s
        self._monitors = _monitors()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._stop.is_set():
            try:
                for _ in range(SAMPLES):
                    for monitor in self._monitors:
                        monitor.collect_metrics()
                    if self._stop.wait(self._every_s / SAMPLES):
                        return
                self._publish()
            except Exception as error:  # a sensor that fails must not end the job
                log.warning("system metrics are no longer measured (%s)", first_line(error))
                return

    def _publish(self) -> None:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            found.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        step = int((time.time() - self._start_s) / self._every_s)
        self._record(step, {f"system/{name}": float(value) for name, value in found.items()})


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        found.append(GPUMonitor())
    except Exception as error:  # no NVIDIA GPU, or no nvidia-ml-py
        log.info("system metrics have no GPUs (%s)", first_line(error))
    return found
