"""Records metrics through Ray, whose agents export them on every node.

Recording does nothing where this process is not connected to Ray, and never fails the work. A call takes some
microseconds and its caller makes it once per unit, report or checkpoint, never per row.

Ray exports a gauge once per value that is set, and forgets it after two of its intervals of 10 s. So a thread sets all
gauges again: a figure of a process that lives stays, and one of a process that died or was stopped goes.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from altdiffusion.monitoring.catalogue import ALWAYS, PREFIX, Metric
from altdiffusion.monitoring.identity import identity

log = logging.getLogger(__name__)

REPEAT_S = 5.0
"""How often gauges are set again."""

_gauges: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Metric, float, dict[str, str]]] = {}
_lock = threading.Lock()
_made: dict[str, Any] = {}
_failed: set[str] = set()


def add(metric: Metric, amount: float, **labels: str) -> None:
    """Add to a counter; nothing happens where the amount is 0."""
    if amount > 0:
        _record(metric, "inc", amount, _labels(labels))


def set_to(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge; it keeps its value until it is set again or this process ends."""
    tags = _labels(labels)
    if not _record(metric, "set", value, tags):
        return
    with _lock:
        if not _gauges:
            threading.Thread(target=_repeat, name="gauges", daemon=True).start()
        _gauges[metric.name, tuple(sorted(tags.items()))] = (metric, value, tags)


def observe(metric: Metric, value: float, **labels: str) -> None:
    """Add a value to a histogram."""
    _record(metric, "observe", value, _labels(labels))


def _record(metric: Metric, verb: str, value: float, tags: dict[str, str]) -> bool:
    """Hand a value to Ray; return whether it took it."""
    # A process that has not imported Ray has no connection, nor has one in which another thread is importing it.
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    try:
        if is_initialized is None or not is_initialized():
            return False
        made = _made.get(metric.name)
        if made is None:
            made = _made[metric.name] = _make(metric)
        getattr(made, verb)(float(value), tags)
    except Exception as error:  # a figure that is lost must not end the work
        if metric.name not in _failed:
            _failed.add(metric.name)
            log.warning("metric %s is not exported: %s", metric.name, error)
        return False
    return True


def _repeat() -> None:
    while True:
        time.sleep(REPEAT_S)
        with _lock:
            known = list(_gauges.values())
        for metric, value, tags in known:
            _record(metric, "set", value, tags)


def _labels(labels: dict[str, str]) -> dict[str, str]:
    here = identity()
    return {"job_name": here.job, "run": here.run, **labels}


def _make(metric: Metric) -> Any:
    from ray.util import metrics

    name, labels = PREFIX + metric.name, (*ALWAYS, *metric.labels)
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.meaning, boundaries=list(metric.buckets), tag_keys=labels)
    return (metrics.Gauge if metric.kind == "gauge" else metrics.Counter)(name, metric.meaning, tag_keys=labels)
