"""Checkpoints of a running training, shown in MLflow as they are written: a thread of the driver looks for them.

The training does not know of it: the thread lists one folder every few seconds, and images are drawn by a pool of
workers of their own (`samples.where: between`).
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from altdiffusion.errors import first_line
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document
from altdiffusion.training.checkpoints import format as checkpoints
from jobs.contact_sheets import ALL, export_for_samples, log_samples
from jobs.session import Session
from pipelines.train import TrainJobConfig

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0


class CheckpointWatch:
    """Records the checkpoints of a run, and draws their samples, for as long as the block lasts.

    Nothing that fails in it ends the training: what it did not record is recorded when the training has ended.
    """

    def __init__(self, config: TrainJobConfig, session: Session) -> None:
        self._config = config
        self._session = session
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="checkpoint-watch", daemon=True)]
        if config.samples is not None and config.samples.where == "between":
            self._threads.append(threading.Thread(target=self._draw, name="samples", daemon=True))

    def __enter__(self) -> CheckpointWatch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads if error is None else self._threads[:1]:  # after a failure nothing is drawn
            thread.join()

    def _watch(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(LOOK_EVERY_S)  # read first, so that the last look sees the last checkpoint
            try:
                record_checkpoints(self._config, self._session)
            except Exception as error:  # a checkpoint that is pruned meanwhile, a storage that is down
                log.warning("run %s: looking for checkpoints failed (%s)", self._config.train.run, first_line(error))

    def _draw(self) -> None:
        failed: set[int] = set()
        while not self._stop.wait(LOOK_EVERY_S):
            step = 0
            try:
                due = [step for step in _steps_to_draw(self._config, self._session) if step not in failed]
                if due:
                    step = due[-1]  # the newest: an older one may be pruned meanwhile
                    export_for_samples(self._config, self._session, step)
                    log_samples(self._config, self._session, step)
            except Exception as error:  # as above, and workers that are lost
                failed.add(step)
                log.warning("samples of step %d are drawn when the training has ended (%s)", step, first_line(error))


def record_checkpoints(config: TrainJobConfig, session: Session) -> None:
    """Record the complete checkpoints that the lake holds, and which of them it no longer holds."""
    lake, run = session.lake.uri, config.train.run
    there = checkpoints.steps(lake, run)
    known = {checkpoints.run_and_step(Ref.parse(text)): text for text in session.run.checkpoints()}
    for step in there:
        folder = checkpoints.folder_of(lake, run, step)
        complete = optional_document(files.join(folder, checkpoints.COMPLETE)) if (run, step) not in known else None
        if complete is not None:  # its files are verified where they are read
            found = checkpoints.of_document(folder, complete)
            session.run.checkpoint(found.ref, step=step, metrics=found.state()["metrics"])
    for (name, step), text in known.items():
        if name == run and step not in there:
            session.run.removed(text)


def _steps_to_draw(config: TrainJobConfig, session: Session) -> list[int]:
    assert config.samples is not None
    steps = checkpoints.steps(session.lake.uri, config.train.run)
    return [step for step in (0, *steps) if config.draws(step) and not session.run.has_image(ALL, step)]
