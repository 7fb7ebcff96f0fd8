"""The metrics of a run for Prometheus, recorded by the driver with every report."""

from __future__ import annotations

import time

from altdiffusion.monitoring import catalogue
from altdiffusion.monitoring.record import set_to
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.reporting.progress import Progress


class RunMetrics:
    """Records what a run reports. Moments are exported, not ages: an age would stay as it is when reports stop."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._saved = False

    def progress(self, progress: Progress) -> None:
        """Record the state after some steps."""
        config, now = self._config, time.time()
        step_s = config.global_batch / progress.samples_per_second if progress.samples_per_second else 0.0
        for metric, value in (
            (catalogue.TRAIN_STEP, progress.step),
            (catalogue.TRAIN_STEPS, progress.steps),
            (catalogue.TRAIN_LOSS, progress.loss),
            (catalogue.TRAIN_SAMPLES_PER_SECOND, progress.samples_per_second),
            (catalogue.TRAIN_STEP_SECONDS, step_s),
            (catalogue.TRAIN_MFU_RATIO, progress.mfu),
            (catalogue.TRAIN_DATA_WAIT_RATIO, progress.data_wait),
            (catalogue.TRAIN_GOODPUT_RATIO, progress.goodput.share),
            (catalogue.TRAIN_WASTED_STEPS, progress.goodput.wasted_steps),
            (catalogue.TRAIN_RESTARTS, progress.goodput.restarts),
            (catalogue.TRAIN_SKIPPED_STEPS, progress.skipped_steps),
            (catalogue.TRAIN_MEMORY_BYTES, progress.memory_bytes),
            (catalogue.TRAIN_REPORTED_SECONDS, now),
            (catalogue.TRAIN_REPORT_INTERVAL_SECONDS, config.log_every * step_s),
            (catalogue.TRAIN_CHECKPOINT_INTERVAL_SECONDS, config.checkpoint_every * step_s),
        ):
            set_to(metric, value)
        if not self._saved:  # so that a run without any checkpoint has an age that grows
            self._saved = True
            set_to(catalogue.TRAIN_CHECKPOINT_AT_SECONDS, now)

    def checkpoint(self, step: int) -> None:
        """Record that the checkpoint of a step was written."""
        self._saved = True
        set_to(catalogue.TRAIN_CHECKPOINT_STEP, step)
        set_to(catalogue.TRAIN_CHECKPOINT_AT_SECONDS, time.time())
