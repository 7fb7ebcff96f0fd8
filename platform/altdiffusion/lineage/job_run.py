"""The interface for jobs: one MLflow run per job, across all its restarts, that never blocks or ends the job.

    with JobRun.open(job="train", name=..., fingerprint=..., config=..., lake=..., tracking_uri=None) as run:
        run.input(version, "training")
        run.ship(run.metrics_path)          # ships what MetricOutbox(run.metrics_path) appends to MLflow
        run.checkpoint(ref, step=100, metrics={"loss": 0.1})
        run.image("samples/_all", sheet, step=100)

Only `open` connects to MLflow in the caller's thread, and it fails if it cannot. Everything else appends a line to a
journal (`<lake>/tracking/<job>-<name>-<fingerprint>/journal.jsonl`) that the shipping thread applies. During an outage
it applies the line later, and after a crash the next start of the same job does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from altdiffusion.credentials import redact
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.compared import compared, key_name
from altdiffusion.lineage.described import run_note
from altdiffusion.lineage.job_folder import (
    JOURNAL,
    ShippingLock,
    first_start,
    here,
    metrics_path,
    same_run,
    tracking_folder,
)
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.known import Known
from altdiffusion.lineage.mlflow_view import RunView, find_or_create_run
from altdiffusion.lineage.outbox import JsonLines, MemoryOutbox, OutboxReader, Send, Shipper, Source
from altdiffusion.lineage.source import source_facts, source_tags
from altdiffusion.lineage.spools import Waiting, flush_command, guarded, ship_dead
from altdiffusion.lineage.starts import Start
from altdiffusion.lineage.system_metrics import SystemMetrics
from altdiffusion.lineage.tracking import DEFAULT_EXPERIMENT, NOTE, Tracking, connect, starting
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version

log = logging.getLogger(__name__)

CARD = "README.md"
CLOSE_TIMEOUT_S = 60.0


class JobRun:
    """A job's run. `JobRun.open` creates it; as a context manager it takes its status from the way the block ends."""

    def __init__(self, tracking: Tracking, run_id: str, lake_uri: str, folder: str, start: Start) -> None:
        self.tracking = tracking
        self.run_id = run_id
        self.folder = folder
        self._lake = lake_uri
        self._start = start
        self._session = time.time_ns()
        self._training: list[str] = []
        self._closed = False
        self._system: SystemMetrics | None = None
        self._known = Known.read(files.within(folder, JOURNAL))
        self._kept = Kept(folder)
        self._view = RunView(tracking, run_id, lake_uri, self._kept, session=self._session)
        self._journal = JsonLines(files.within(folder, JOURNAL))
        self._unwritten = MemoryOutbox()
        self._lock = ShippingLock(folder)
        self._shipper = Shipper(ended=self._lock.release)  # only that thread takes it
        self._ship(OutboxReader(self._journal.path), self._view.apply)

    @classmethod
    def open(
        cls,
        *,
        job: str,
        name: str,
        fingerprint: str,
        config: Mapping[str, Any],
        lake: Lake | str,
        tracking_uri: str | None = None,
        experiment: str = DEFAULT_EXPERIMENT,
        system_metrics: bool = False,
    ) -> JobRun:
        """Find or create the job's run.

        Args:
            job: curate, encode, train, generate or evaluate.
            name: the job's own name: that of the training run, or of the dataset that it makes.
            fingerprint: the config's fingerprint; another fingerprint means another run.
            config: resolved config, for the params (`compared`) and the artifact config.yaml.
            lake: the lake or its URI.
            tracking_uri: MLflow's URI; None for the SQLite database in the lake.
            experiment: MLflow experiment.
            system_metrics: whether to measure this machine until the run is closed.

        Raises:
            AltDiffusionError: MLflow cannot be reached within about ten seconds.
        """
        lake_uri = files.anchored(lake.uri if isinstance(lake, Lake) else lake)
        tracking = connect(tracking_uri, lake_uri, experiment)
        folder = tracking_folder(lake_uri, job, name, fingerprint)
        about = {
            "job": job,
            "name": name,
            "fingerprint": fingerprint,
            "uri": tracking.uri,
            "experiment": experiment,
            "host": here(),
            "own": tracking_uri is None,
            "lake": lake_uri,
        }
        with starting(tracking.uri):
            run_id, start_ms = find_or_create_run(
                tracking, job=job, name=name, fingerprint=fingerprint, start_ms=first_start(folder)
            )
        start = Start(
            job=job, name=name, fingerprint=fingerprint, time_ms=time.time_ns() // 1_000_000,
            facts=source_facts(), outputs=[],
        )  # fmt: skip
        same_run(folder, {**about, "run_id": run_id, "start_ms": start_ms})
        start.write(lake_uri)
        run = cls(tracking, run_id, lake_uri, folder, start)
        tags = {**source_tags(job, start.facts), NOTE: run_note(job, name)}
        run._note("params", config=dict(config), params=compared(job, config), tags=tags)
        if system_metrics:
            run._system = SystemMetrics(run._measure_system, start_ms)
        run._shipper.later(ship_dead(tracking, lake_uri, own=tracking_uri is None, but=folder))
        return run

    @property
    def metrics_path(self) -> str:
        """Path of this job's MetricOutbox."""
        return metrics_path(self.folder)

    @property
    def url(self) -> str:
        """Address of the run for a browser."""
        return self.tracking.run_url(self.run_id)

    def compare(self, params: Mapping[str, str | float]) -> None:
        """Record params to compare runs by that the config does not state, such as the digests of datasets."""
        self._note("compare", params={key_name(key): str(value) for key, value in params.items()})

    def input(self, version: Version | Ref | str, context: str = "training") -> None:
        """Record an input of the job: a dataset version, source, checkpoint or model."""
        ref = _ref(version)
        if context == "training" and ref.startswith("dataset:") and ref not in self._training:
            self._training.append(ref)
        self._note("input", ref=ref, context=context)

    def output(self, version: Version | Ref | str, *, place: int | None = None) -> None:
        """Record a dataset version that the job made.

        Args:
            place: its number, from 1, among the job's outputs. Of a curation, the counts of rows become metrics.
        """
        ref = _ref(version)
        self._start.output(self._lake, ref)
        counted = self._start.job == "curate" and place is not None and ref not in self._known.outputs
        self._note("output", ref=ref, **({"place": place} if counted else {}))  # a restart does not count it again

    def checkpoint(self, ref: Ref | str, *, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Record a complete checkpoint of the lake; `metrics` are linked to it and to the datasets trained on.

        What was recorded of it before, by this start of the job or an earlier one, is not recorded again.
        """
        known = self._known.checkpoints.get(str(ref))
        new = {key: float(value) for key, value in (metrics or {}).items() if key not in (known or ())}
        if known is not None and not new:
            return
        if known is None:
            self._start.output(self._lake, str(ref))
        self._note(
            "checkpoint",
            ref=str(ref),
            step=step,
            metrics=new,
            datasets=list(self._training),
            node=_described(self._lake, str(ref)),
        )

    def checkpoints(self) -> frozenset[str]:
        """Return the references of the checkpoints that were recorded and not removed."""
        return frozenset(self._known.checkpoints) - self._known.removed

    def exported(self, ref: Ref | str, folder: str) -> None:
        """Record that a checkpoint was exported to a folder of the lake, with its model card."""
        if str(ref) in self._known.exported:
            return
        card = files.join(folder, CARD)
        text = files.read_bytes(card).decode() if files.exists(card) else ""
        self._note("exported", ref=str(ref), card=_without_header(text), node=_described(self._lake, str(ref)))

    def candidate(self, ref: Ref | str) -> None:
        """Record the exported checkpoint with which the run's stage ended: the registered model's `candidate`."""
        if str(ref) not in self._known.candidates:  # so that an older run that is looked at again does not take it back
            self._note("candidate", ref=str(ref), node=_described(self._lake, str(ref)))

    def removed(self, ref: Ref | str) -> None:
        """Record that the lake no longer holds a checkpoint."""
        if str(ref) in self._known.removed:
            return
        self._note("removed", ref=str(ref), node=self._known.nodes.get(str(ref)))

    def measured(
        self, ref: Ref | str, metrics: Mapping[str, float], *, datasets: Sequence[Version | Ref | str]
    ) -> None:
        """Record what was measured of a checkpoint or model after its training.

        Args:
            metrics: linked to the checkpoint, and to the first of the datasets that they were measured on.
            datasets: these, and the checkpoint, become inputs of the run.
        """
        self.input(ref, context="measure")
        for dataset in datasets:
            self.input(dataset, context="measure")
        self._note(
            "measured",
            ref=str(ref),
            metrics={key: float(value) for key, value in metrics.items()},
            datasets=[_ref(dataset) for dataset in datasets],
        )

    def image(self, key: str, image: Any, *, step: int) -> None:
        """Record an image at a step; MLflow shows one slider per key.

        Args:
            image: encoded bytes, a path or a PIL image.
        """
        try:
            data = image if isinstance(image, bytes) else _encoded(image)
            file = self._kept.keep(data)
        except Exception as error:  # a sample sheet must not end a training run
            log.warning("image %s at step %d is not recorded (%s)", key, step, error)
            return
        if (key, step, file) not in self._known.images:  # a restart draws the same
            self._note("image", key=key, step=step, file=file)

    def has_image(self, key: str, step: int) -> bool:
        """Return whether an image was recorded under a key at a step."""
        return any((known, at) == (key, step) for known, at, _ in self._known.images)

    def artifact(self, path: str, artifact_path: str | None = None) -> None:
        """Record a copy of a file (any URI) or of a local folder."""
        try:
            copy = self._kept.keep_copy(path)
        except (OSError, AltDiffusionError) as error:
            log.warning("artifact %s is not recorded (%s)", path, error)
            return
        self._note("artifact", file=copy, path=artifact_path)

    def page(self, ref: Version | Ref | str) -> None:
        """Record lineage.html, the graph around `ref` at the time of shipping."""
        self._note("picture", ref=_ref(ref))

    def ship(self, outbox_path: str) -> None:
        """Ship a metric outbox from where shipping stopped, while it grows and again at the end."""
        self._ship(OutboxReader(outbox_path), self._view.metrics)

    def close(self, status: str = "FINISHED", error: BaseException | None = None) -> bool:
        """End the run (FINISHED, FAILED or KILLED) and wait for the shipping for at most CLOSE_TIMEOUT_S.

        Returns:
            Whether everything reached MLflow; the rest stays in the outbox.
        """
        if self._closed:
            return True
        if self._system is not None:
            self._system.stop()
        self._note("status", status=status, session=self._session, error=None if error is None else redact(f"{error}"))
        self._closed = True
        shipped = self._shipper.stop(CLOSE_TIMEOUT_S)
        self._journal.close()
        if not shipped:
            log.warning(
                "MLflow %s has not accepted everything (%s): %s wait in %s. `%s`, or the next start of any job in this "
                "lake, ships them",
                self.tracking.uri,
                first_line(self._shipper.last_error) if self._shipper.last_error else "it does not answer",
                Waiting.of(self.folder),
                self.folder,
                flush_command(self._lake, self.tracking),
            )
        return shipped

    def __enter__(self) -> JobRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = None
        killed = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and isinstance(error.code, int) and error.code >= 128
        )
        status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        self.close(status, error)

    def _measure_system(self, step: int, metrics: Mapping[str, float]) -> None:
        self._note("system", step=step, metrics=dict(metrics))

    def _note(self, operation: str, **fields: Any) -> None:
        if self._closed:  # by a thread that is still drawing: the job's last record is its status
            return
        self._known.add({"op": operation, **fields})
        record = {"op": operation, "time_ms": time.time_ns() // 1_000_000, **fields}
        if not self._journal.append(record):  # a full disk: MLflow has it nevertheless, if it answers
            self._unwritten.append(record)
            self._ship(self._unwritten, self._view.apply)
        self._shipper.wake()

    def _ship(self, source: Source, send: Send) -> None:
        self._shipper.add(source, guarded(self.tracking, self._lake, self._lock, send))


def _described(lake: str, ref: str) -> dict[str, Any] | None:
    """Return what the view needs of a checkpoint when the lake no longer holds it."""
    try:
        node = graphs.read_node(lake, ref)
    except (OSError, AltDiffusionError):  # the view reports it
        return None
    return None if node.missing else {"parents": list(node.parents), "facts": dict(node.facts)}


def _without_header(card: str) -> str:
    """Return a model card without the fields for the hub at its top."""
    return card.split("\n---\n", 1)[-1].strip() if card.startswith("---\n") else card.strip()


def _ref(thing: Version | Ref | str) -> str:
    return str(thing.ref) if isinstance(thing, Version) else str(thing)


def _encoded(image: Any) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        with open(image, "rb") as file:
            return file.read()
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
