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

import fcntl
import logging
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeGuard

from altdiffusion.credentials import redact
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.mlflow_view import RunView, find_or_create_run, run_key
from altdiffusion.lineage.outbox import JsonLines, OutboxReader, Shipper
from altdiffusion.lineage.tracking import DEFAULT_EXPERIMENT, Tracking, connect, starting
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import optional_document

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
METRICS = "metrics.jsonl"
ABOUT = "job.json"
CLOSE_TIMEOUT_S = 60.0


class JobRun:
    """A job's run. `JobRun.open` creates it; as a context manager it takes its status from the way the block ends."""

    def __init__(self, tracking: Tracking, run_id: str, lake_uri: str, folder: str) -> None:
        self.tracking = tracking
        self.run_id = run_id
        self.folder = folder
        self._lake = lake_uri
        self._session = time.time_ns()
        self._training: list[str] = []
        self._closed = False
        self._kept = Kept(folder)
        self._view = RunView(tracking, run_id, lake_uri, self._kept, session=self._session)
        self._journal = JsonLines(files.within(folder, JOURNAL))
        self._shipper = Shipper()
        self._shipper.add(OutboxReader(self._journal.path), self._view.apply)

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
    ) -> JobRun:
        """Find or create the job's run.

        Args:
            job: curate, encode, train, generate or evaluate.
            name: the job's own name: that of the training run, or of the dataset that it makes.
            fingerprint: the config's fingerprint; another fingerprint means another run.
            config: resolved config, for the params.
            lake: the lake or its URI.
            tracking_uri: MLflow's URI; None for the SQLite database in the lake.
            experiment: MLflow experiment.

        Raises:
            AltDiffusionError: MLflow cannot be reached within about ten seconds.
        """
        lake_uri = files.anchored(lake.uri if isinstance(lake, Lake) else lake)
        tracking = connect(tracking_uri, lake_uri, experiment)
        folder = tracking_folder(lake_uri, job, name, fingerprint)
        about = {"job": job, "name": name, "fingerprint": fingerprint, "uri": tracking.uri}
        with starting(tracking.uri):
            run_id, start_ms = find_or_create_run(
                tracking, job=job, name=name, fingerprint=fingerprint, start_ms=first_start(folder)
            )
        _same_run(folder, {**about, "run_id": run_id, "start_ms": start_ms})
        run = cls(tracking, run_id, lake_uri, folder)
        run._note("params", config=dict(config))
        return run

    @property
    def metrics_path(self) -> str:
        """Path of this job's MetricOutbox."""
        return metrics_path(self.folder)

    @property
    def url(self) -> str:
        """Address of the run for a browser."""
        return self.tracking.run_url(self.run_id)

    def input(self, version: Version | Ref | str, context: str = "training") -> None:
        """Record an input of the job: a dataset version, source, checkpoint or model."""
        ref = _ref(version)
        if context == "training" and ref.startswith("dataset:") and ref not in self._training:
            self._training.append(ref)
        self._note("input", ref=ref, context=context)

    def output(self, version: Version | Ref | str) -> None:
        """Record a dataset version that the job made."""
        self._note("output", ref=_ref(version))

    def checkpoint(self, ref: Ref | str, *, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Record a complete checkpoint of the lake; `metrics` are linked to it and to the datasets trained on."""
        self._note(
            "checkpoint",
            ref=str(ref),
            step=step,
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            datasets=list(self._training),
        )

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
        self._note("image", key=key, step=step, file=file)

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
        self._shipper.add(OutboxReader(outbox_path), self._view.metrics)

    def close(self, status: str = "FINISHED", error: BaseException | None = None) -> bool:
        """End the run (FINISHED, FAILED or KILLED) and wait for the shipping for at most CLOSE_TIMEOUT_S.

        Returns:
            Whether everything reached MLflow; the rest stays in the outbox.
        """
        if self._closed:
            return True
        self._closed = True
        self._note("status", status=status, session=self._session, error=None if error is None else redact(f"{error}"))
        shipped = self._shipper.stop(CLOSE_TIMEOUT_S)
        self._journal.close()
        if not shipped:
            log.warning(
                "MLflow %s did not accept everything (%s). Nothing is lost: %s holds the rest, and the next start of "
                "this job or `altdiffusion lineage rebuild` ships it",
                self.tracking.uri,
                self._shipper.last_error,
                self.folder,
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

    def _note(self, operation: str, **fields: Any) -> None:
        self._journal.append({"op": operation, "time_ms": time.time_ns() // 1_000_000, **fields})
        self._shipper.wake()


def metrics_path(folder: str) -> str:
    """Return the path of the metric outbox in a tracking folder."""
    return files.within(folder, METRICS)


def tracking_folder(lake_uri: str, job: str, name: str, fingerprint: str) -> str:
    """Return the folder of a job's journal and outbox: in the lake, or in the user's folder if the lake is remote."""
    readable = re.sub(r"[^A-Za-z0-9._\-]", "-", f"{job}-{name}-{fingerprint[:12]}")
    if files.is_local(lake_uri):
        lake = files.local_path(lake_uri)
        return files.within(lake, "tracking", readable)
    return os.path.join(state_folder(), "tracking", run_key(job, name, fingerprint))


def state_folder() -> str:
    """Return this user's private folder for files that outlive a job but cannot be kept in a remote lake.

    It is `altdiffusion` in XDG_STATE_HOME, by default ~/.local/state.

    Raises:
        AltDiffusionError: the folder belongs to another user, or others may enter it.
    """
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = os.path.join(home, "altdiffusion")
    with files.naming(folder, "creating the folder"):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    facts = os.lstat(folder)
    if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o077:
        raise AltDiffusionError(
            f"folder {folder}",
            f"can be used by others (owner {facts.st_uid}, mode {facts.st_mode & 0o777:04o})",
            f"run `chmod 700 {folder}`, or name another folder in XDG_STATE_HOME",
        )
    return folder


def first_start(folder: str) -> int | None:
    """Return when a job was first started, in milliseconds since the epoch; None where its folder does not know that.

    The folder of an earlier version knows the time of the journal's first record.
    """
    try:
        about = optional_document(files.within(folder, ABOUT))
        if about is not None and "start_ms" in about.value:
            return about.count("start_ms")
    except AltDiffusionError:  # torn: the journal knows it nearly as well
        pass
    chunk = OutboxReader(files.within(folder, JOURNAL), remember=False).read()
    times = [record["time_ms"] for record in chunk.records if is_time(record.get("time_ms"))] if chunk else []
    return min(times, default=None)


def is_time(value: object) -> TypeGuard[int]:
    """Return whether a value of a journal is a time in milliseconds that MLflow can store."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_running(folder: str) -> bool:
    """Return whether a process of this machine has the journal in a folder open."""
    try:
        descriptor = os.open(files.within(folder, JOURNAL), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _same_run(folder: str, about: Mapping[str, str | int]) -> None:
    """Let everything be shipped again if the folder's records went to another run (MLflow was emptied or moved)."""
    path = files.within(folder, ABOUT)
    try:
        document = optional_document(path)
        known = None if document is None else document.value
    except AltDiffusionError:  # torn: its content is not known, so everything is shipped again
        known = {}
    if known is not None and (known.get("run_id"), known.get("uri")) != (about["run_id"], about["uri"]):
        for name in os.listdir(folder):
            if name.endswith(".offset"):
                os.unlink(os.path.join(folder, name))
    files.write_atomic(path, files.canonical_json(about))


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
