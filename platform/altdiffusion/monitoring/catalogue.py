"""The metrics that this platform exports to Prometheus: each one once, with what it means.

Ray's agents export them from every node, with `ray_` in front and `_total` behind the names of counters. Labels take
few values: names of jobs, runs, datasets and pipeline steps, reject reasons. No label is an address, an id or a host.
`docs/monitoring.md`, the dashboard and the alert rules are compared with this list (`tests/unit/test_monitoring.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "altdiffusion_"
ALWAYS = ("job_name", "run")
"""Labels of every metric. Prometheus gives each target a label `job` of its own, and would rename one of ours."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A series per combination of labels.

    A gauge is what is true now, a counter only grows, a histogram counts values in buckets.
    """

    name: str
    """Without `PREFIX`."""
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    """Besides `ALWAYS`."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""

    @property
    def exported(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        name = f"ray_{PREFIX}{self.name}"
        suffixes = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        return tuple(name + suffix for suffix in suffixes[self.kind])


_MINUTES = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

UNITS = Metric(name="units", kind="gauge", labels=("step",), meaning="units of a pipeline step")
UNITS_DONE = Metric(
    name="units_done", kind="gauge", labels=("step",), meaning="units that are recorded, with those of earlier starts"
)
UNITS_FINISHED = Metric(name="units_finished", kind="counter", labels=("step",), meaning="units that this start made")
UNITS_FAILED = Metric(
    name="units_failed",
    kind="counter",
    labels=("step", "reason"),
    meaning="failures of units: `error` ended the job, `unsettled` is tried again later, `worker_lost` is tried again "
    "in a new pool",
)
UNIT_SECONDS = Metric(
    name="unit_seconds", kind="histogram", labels=("step",), meaning="seconds to make a unit", buckets=_MINUTES
)
ROWS_READ = Metric(
    name="rows_read", kind="counter", labels=("step", "dataset"), meaning="rows that finished units have read"
)
ROWS_ACCEPTED = Metric(
    name="rows_accepted",
    kind="counter",
    labels=("step", "dataset"),
    meaning="rows that finished units have kept: images of a download, generated images of generate",
)
ROWS_REJECTED = Metric(
    name="rows_rejected",
    kind="counter",
    labels=("step", "dataset", "reason"),
    meaning="rows that finished units have rejected, by reject reason",
)
ROWS_UNFINISHED = Metric(
    name="rows_unfinished", kind="gauge", labels=("step",), meaning="rows of units that are being made (generate)"
)
BYTES_WRITTEN = Metric(
    name="bytes_written", kind="counter", labels=("step", "dataset"), meaning="bytes of the shards of finished units"
)
DOWNLOADS_IN_FLIGHT = Metric(
    name="downloads_in_flight", kind="gauge", meaning="requests of a worker that are under way"
)
NODES_WAITED_SECONDS = Metric(
    name="nodes_waited_seconds",
    kind="gauge",
    meaning="seconds for which workers have waited for nodes; 0 if none waits",
)
NODES_WAIT_LIMIT_SECONDS = Metric(
    name="nodes_wait_limit_seconds", kind="gauge", meaning="execution.wait_for_nodes_s, after which the job gives up"
)
TRAIN_STEP = Metric(name="train_step", kind="gauge", meaning="step of the last report")
TRAIN_STEPS = Metric(name="train_steps", kind="gauge", meaning="steps that the run is to take")
TRAIN_LOSS = Metric(name="train_loss", kind="gauge", meaning="mean loss since the report before")
TRAIN_SAMPLES_PER_SECOND = Metric(
    name="train_samples_per_second", kind="gauge", meaning="images per second of all workers; pairs, of distillation"
)
TRAIN_STEP_SECONDS = Metric(name="train_step_seconds", kind="gauge", meaning="mean seconds per step")
TRAIN_MFU_RATIO = Metric(
    name="train_mfu_ratio",
    kind="gauge",
    meaning="model FLOPs utilisation, 0 to 1, of the peak that is configured or known",
)
TRAIN_DATA_WAIT_RATIO = Metric(
    name="train_data_wait_ratio", kind="gauge", meaning="share of the time that workers waited for data"
)
TRAIN_GOODPUT_RATIO = Metric(
    name="train_goodput_ratio", kind="gauge", meaning="time of steps that count / time since the run began"
)
TRAIN_WASTED_STEPS = Metric(name="train_wasted_steps", kind="gauge", meaning="steps that were repeated, or will be")
TRAIN_RESTARTS = Metric(name="train_restarts", kind="gauge", meaning="restarts since the run began")
TRAIN_SKIPPED_STEPS = Metric(
    name="train_skipped_steps", kind="gauge", meaning="steps whose loss or gradient was not finite"
)
TRAIN_MEMORY_BYTES = Metric(name="train_memory_bytes", kind="gauge", meaning="largest peak of a worker's memory")
TRAIN_REPORTED_SECONDS = Metric(
    name="train_reported_timestamp_seconds", kind="gauge", meaning="when the last report came, in seconds since 1970"
)
TRAIN_REPORT_INTERVAL_SECONDS = Metric(
    name="train_report_interval_seconds", kind="gauge", meaning="seconds between reports at the present pace"
)
TRAIN_CHECKPOINT_STEP = Metric(name="train_checkpoint_step", kind="gauge", meaning="step of the last checkpoint")
TRAIN_CHECKPOINT_AT_SECONDS = Metric(
    name="train_checkpoint_timestamp_seconds",
    kind="gauge",
    meaning="when the last checkpoint was written, else when this start began to train, in seconds since 1970",
)
TRAIN_CHECKPOINT_INTERVAL_SECONDS = Metric(
    name="train_checkpoint_interval_seconds", kind="gauge", meaning="seconds between checkpoints at the present pace"
)
TRAIN_CHECKPOINT_SECONDS = Metric(
    name="train_checkpoint_seconds",
    kind="histogram",
    meaning="seconds to write a checkpoint, while training continues",
    buckets=(1.0, 5.0, 15.0, 60.0, 300.0, 900.0),
)
OUTBOX_BYTES = Metric(name="outbox_bytes", kind="gauge", meaning="bytes that wait to be shipped to MLflow")
OUTBOX_FAILED_TRIES = Metric(
    name="outbox_failed_tries", kind="gauge", meaning="tries in a row in which MLflow did not take them"
)

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them."""
