"""The folder in which a job keeps what it logs, until MLflow has it and after that: where it is, and whose it is.

<lake>/tracking/<job>-<name>-<first digits of the fingerprint>/
    job.json         the job, and the run of MLflow that shows it
    journal.jsonl    what it recorded; metrics.jsonl: its metric points; <file>.offset: how far each is shipped
    files/           copies of images and artifacts
    ship.lock        held by the process that ships, so that no second one does
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.mlflow_view import run_key
from altdiffusion.lineage.outbox import OutboxReader
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document

JOURNAL = "journal.jsonl"
METRICS = "metrics.jsonl"
ABOUT = "job.json"
LOCK = "ship.lock"
QUIET_S = 3600.0
"""A job of another machine counts as ended when it has logged nothing for so long: its lock is not seen here."""


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


def same_run(folder: str, about: Mapping[str, Any]) -> None:
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


class ShippingLock:
    """The right to ship what a folder holds; one process at a time has it, and it ends with its process."""

    def __init__(self, folder: str) -> None:
        self._path = files.within(folder, LOCK)
        self._descriptor = -1

    def take(self) -> bool:
        """Return whether this process has the lock now; where the file system knows no locks, it always has it."""
        if self._descriptor >= 0:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:  # a full disk or a read-only lake must not stop the shipping
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            pass
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def job_folders(lake_uri: str) -> list[str]:
    """Return the folders of all jobs that have logged into a lake, as far as they are on this machine."""
    if files.is_local(lake_uri):
        root = files.join(files.local_path(lake_uri), "tracking")
        return [files.within(root, name) for name in files.list_folders(root)]
    root = os.path.join(state_folder(), "tracking")
    found = [files.within(root, name) for name in files.list_folders(root)]
    return [folder for folder in found if _lake_of(folder) == lake_uri]


def _lake_of(folder: str) -> str | None:
    with contextlib.suppress(AltDiffusionError):  # a damaged one belongs to no lake
        about = optional_document(files.within(folder, ABOUT))
        return None if about is None else str(about.value.get("lake"))
    return None


def here() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def has_ended(folder: str, about: Mapping[str, Any]) -> bool:
    """Return whether the job of a folder runs no longer: its lock is free here, or elsewhere it has long been quiet."""
    if is_running(folder):
        return False
    if about.get("host", here()) == here():
        return True
    newest = 0.0
    for name in (JOURNAL, METRICS):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, os.stat(files.within(folder, name)).st_mtime)
    return time.time() - newest > QUIET_S
