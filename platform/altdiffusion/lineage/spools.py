"""What jobs have logged and MLflow does not have: found in a lake, and shipped once their job has ended.

A job ships what it logs by itself. What is left when it was killed, or when its server was down at its end, is shipped
by the next start of any job of the lake that logs to the same MLflow, and by `altdiffusion lineage flush`. A run whose
job has ended without a last word is marked KILLED, at the time of its last sign of life. Shipping twice adds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.job_folder import (
    ABOUT,
    JOURNAL,
    METRICS,
    ShippingLock,
    has_ended,
    is_time,
    job_folders,
)
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.mlflow_view import RunView, run_key
from altdiffusion.lineage.outbox import Denied, JsonLines, OutboxReader, Record, Send, last_record
from altdiffusion.lineage.tracking import (
    ACCESS,
    DEFAULT_EXPERIMENT,
    Tracking,
    answering,
    connect,
    default_uri,
    is_denied,
)
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document

log = logging.getLogger(__name__)


class NotShippable(AltDiffusionError):
    """What one job has left cannot be shipped now; others are not concerned."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Numbers of what waits."""

    records: int
    """Records of the journal: checkpoints, images, the end of the run."""
    points: int
    """Metric points."""

    @classmethod
    def of(cls, folder: str) -> Waiting:
        """Return what waits in a job's folder."""
        lines = OutboxReader(files.within(folder, METRICS)).waiting()
        points = sum(len(one["metrics"]) for one in lines if isinstance(one.get("metrics"), dict))
        return cls(records=sum(1 for _ in OutboxReader(files.within(folder, JOURNAL)).waiting()), points=points)

    def __bool__(self) -> bool:
        return bool(self.records or self.points)

    def __str__(self) -> str:
        return f"{self.records:,} records and {self.points:,} metric points"


@dataclass(frozen=True, kw_only=True)
class Spool:
    """The folder of a job for which something is left to do."""

    folder: str
    job: str
    """Kind and name, as MLflow shows it: train/quality."""
    run_id: str
    key: str
    """The tag by which the run is known to be the job's own."""
    uri: str | None
    """MLflow, without credentials; None for the database in the lake."""
    experiment: str
    waiting: Waiting
    ended: bool
    """Whether the job runs no longer; a job that runs ships by itself."""
    closed: bool
    """Whether the job has recorded its end."""

    def __str__(self) -> str:
        note = "" if self.closed else ", ended without a last word" if self.ended else ", is running"
        return f"{self.job} -> {self.uri or 'the database in the lake'}: {self.waiting}{note}"


def spools(lake_uri: str, damaged: list[AltDiffusionError]) -> list[Spool]:
    """Return what is left of the jobs of a lake; what cannot be read is added to `damaged`."""
    found = []
    for folder in job_folders(lake_uri):
        try:
            spool = read_spool(lake_uri, folder)
        except AltDiffusionError as error:
            damaged.append(error)
            continue
        if spool is not None and (spool.waiting or not spool.closed):
            found.append(spool)
    return found


def read_spool(lake_uri: str, folder: str) -> Spool | None:
    """Return the state of a job's folder; None where it has no job yet.

    Raises:
        AltDiffusionError: its job.json is damaged.
    """
    about = optional_document(files.within(folder, ABOUT))
    if about is None:
        return None
    uri = about.text("uri")
    own = files.is_local(lake_uri) and (bool(about.value.get("own")) or uri == default_uri(lake_uri))
    return Spool(
        folder=folder,
        job=f"{about.text('job')}/{about.text('name')}",
        run_id=about.text("run_id"),
        key=run_key(about.text("job"), about.text("name"), about.text("fingerprint")),
        uri=None if own else uri,
        experiment=str(about.value.get("experiment", DEFAULT_EXPERIMENT)),
        waiting=Waiting.of(folder),
        ended=has_ended(folder, about.value),
        closed=(last_record(files.within(folder, JOURNAL)) or {}).get("op") == "status",
    )


def ship_dead(tracking: Tracking, lake_uri: str, *, own: bool, but: str) -> Iterator[None]:
    """Ship what ended jobs have left for the MLflow of a job that starts, a chunk per step.

    Args:
        own: whether MLflow is the database in the lake.
        but: the folder of the starting job itself.
    """
    uri = None if own else tracking.uri
    damaged: list[AltDiffusionError] = []
    found = spools(lake_uri, damaged)
    for error in damaged:
        log.warning("what an earlier job has logged is not shipped: %s", error)
    for spool in found:
        if spool.folder != but and spool.ended and spool.uri == uri:
            yield from ship(tracking, lake_uri, spool)


def ship(tracking: Tracking, lake_uri: str, spool: Spool) -> Iterator[None]:
    """Ship what a job has left, a chunk per step, and close its run.

    Raises:
        NotShippable: another process ships it, or the run is not in MLflow.
        Exception: MLflow does not take it.
    """
    lock = ShippingLock(spool.folder)
    if not lock.take():
        raise NotShippable(f"job {spool.job}", "is being shipped by another process", "wait for it")
    try:
        place = replace(tracking, experiment_id=_experiment_of(tracking, spool))
        view = RunView(place, spool.run_id, lake_uri, Kept(spool.folder))
        if not spool.closed:
            _close(spool.folder)
        routes: list[tuple[str, Send]] = [(METRICS, view.metrics), (JOURNAL, view.apply)]
        for name, send in routes:
            reader = OutboxReader(files.within(spool.folder, name))
            while (chunk := reader.read()) is not None:
                send(chunk.records)
                reader.commit(chunk.end)
                yield
    finally:
        lock.release()


def flush(
    lake_uri: str, found: list[Spool], tracking_uri: str | None = None
) -> Iterator[tuple[Spool, AltDiffusionError | None]]:
    """Ship what ended jobs have left, and yield each with the reason why it could not be shipped, if there is one.

    Args:
        found: what to ship.
        tracking_uri: MLflow of what was not logged to the lake's own database. An address that a file in the lake
            names is not used unasked: credentials would go there.
    """
    failed: dict[str | None, AltDiffusionError] = {}
    for spool in found:
        uri = None if spool.uri is None else tracking_uri
        if spool.uri is not None and tracking_uri is None:
            problem, remedy = f"is in MLflow {spool.uri}", "give this address by --tracking-uri, with its credentials"
            yield spool, NotShippable(f"run of {spool.job}", problem, remedy)
            continue
        if uri in failed:
            yield spool, failed[uri]
            continue
        try:
            tracking = connect(uri, lake_uri, spool.experiment)
            with answering(tracking.uri):
                for _ in ship(tracking, lake_uri, spool):
                    pass
            yield spool, None
        except AltDiffusionError as error:
            if not isinstance(error, NotShippable):
                failed[uri] = error
            yield spool, error


def _experiment_of(tracking: Tracking, spool: Spool) -> str:
    from mlflow.exceptions import MlflowException

    try:
        run = tracking.client.get_run(spool.run_id)
        if run.data.tags.get("altdiffusion.key") == spool.key:
            return str(run.info.experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise NotShippable(
        f"MLflow {tracking.uri}, run of {spool.job}",
        f"is not there (id {spool.run_id})",
        "run `altdiffusion lineage rebuild` with the same --tracking-uri: the lake holds what was logged",
    )


def _close(folder: str) -> None:
    """Write the last word of a job that had none: it was killed, at its last sign of life."""
    last = 0
    for name in (JOURNAL, METRICS):
        record = last_record(files.within(folder, name)) or {}
        time_ms = record.get("time_ms")
        last = max(last, time_ms if is_time(time_ms) else 0)
    journal = JsonLines(files.within(folder, JOURNAL))
    journal.append({"op": "status", "time_ms": last, "status": "KILLED", "session": 0, "error": None})
    journal.close()


def guarded(tracking: Tracking, lake_uri: str, lock: ShippingLock, send: Send) -> Send:
    """Return a sender that has the lock, and that names what to do where MLflow refuses access."""

    def guarded_send(records: Sequence[Record]) -> None:
        if not lock.take():
            raise BlockingIOError("another process ships what an earlier start of this job has logged")
        try:
            send(records)
        except Exception as error:
            if not is_denied(error):
                raise
            then = f"{ACCESS}, then run `{flush_command(lake_uri, tracking)}`"
            raise Denied(f"MLflow {tracking.uri} refuses access ({error}): {then}") from error

    return guarded_send


def flush_command(lake_uri: str, tracking: Tracking) -> str:
    """Return the command that ships what waits."""
    own = files.is_local(lake_uri) and tracking.uri == default_uri(lake_uri)
    return f"altdiffusion lineage flush --lake {lake_uri}{'' if own else f' --tracking-uri {tracking.uri!r}'}"
