"""Print what recording a metric for Prometheus costs: python -m benchmarks.metric_calls

Microseconds per call without Ray, and connected to an embedded Ray, the best of three rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from altdiffusion.execution import cluster
from altdiffusion.monitoring import catalogue
from altdiffusion.monitoring.record import add, observe, set_to

CALLS = 20_000
ROUNDS = 3
WAYS: dict[str, Callable[[], None]] = {
    "counter": lambda: add(catalogue.ROWS_READ, 1, step="download", dataset="images"),
    "gauge": lambda: set_to(catalogue.TRAIN_LOSS, 0.5),
    "histogram": lambda: observe(catalogue.UNIT_SECONDS, 3.0, step="download"),
}


def microseconds(call: Callable[[], None]) -> float:
    """Return the microseconds of one call."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - began)
    return best / CALLS * 1e6


def main() -> None:
    without = {name: microseconds(call) for name, call in WAYS.items()}
    cluster.connect(num_cpus=1)
    print("| call | without Ray | with Ray |\n|---|---|---|")
    for name, call in WAYS.items():
        print(f"| {name} | {without[name]:.1f} µs | {microseconds(call):.1f} µs |")
    cluster.shutdown()


if __name__ == "__main__":
    main()
