"""The MLflow server of a lake: its address, a quick connection or a clear error, and the meaning of its refusals.

MLflow by itself retries an unreachable server for minutes. Here the start of a job fails within about ten seconds, and
later records go through the outbox.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from altdiffusion.credentials import MissingCredential, redact, reveal
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.lineage.anchor import ARTIFACTS, reanchor
from altdiffusion.lineage.database import first_contact, is_known_migration
from altdiffusion.lineage.described import EXPERIMENT
from altdiffusion.storage import files

DEFAULT_EXPERIMENT = "altdiffusion"
NOTE = "mlflow.note.content"
"""MLflow's tag of a description."""
PROBES = 3
PROBE_TIMEOUT_S = 2.5
_START = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_LATER = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the shipping thread itself retries without end
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Codes of MLflow for a permanent refusal of a record. Others (no connection, 401, 5xx, a locked database) may pass.
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_LIMIT_EXCEEDED",
}
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_OUTAGES_OF = {"sqlalchemy", "sqlite3", "botocore", "s3transfer", "urllib3", "http", "google", "azure"}


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """A connection that has answered once."""

    uri: str
    """The URI as it was given, without credentials, for messages and records."""
    client: Any  # mlflow.MlflowClient
    experiment_id: str

    def run_url(self, run_id: str) -> str:
        """Return the address of a run for a browser; for a database, that of a server started with `command`."""
        base = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return run_page(base, self.experiment_id, run_id)

    @property
    def command(self) -> str:
        """The command that opens MLflow on this store."""
        if self.uri.startswith("http"):
            return f"open {self.uri}"
        return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri {self.uri} --host 127.0.0.1"


def workflow_page(server: str, path: str) -> str:
    """Return the address of a page of MLflow for training; without the suffix it opens its pages for agents."""
    return f"{server}/#/{path}?workflowType=machine_learning"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run on an MLflow server."""
    return workflow_page(server, f"experiments/{experiment_id}/runs/{run_id}")


def default_uri(lake_uri: str) -> str:
    """Return the URI of the SQLite database in the lake.

    Raises:
        AltDiffusionError: the lake is not on this machine, so it cannot hold a database, or a link leads elsewhere.
    """
    if not files.is_local(lake_uri):
        raise AltDiffusionError(
            f"lake {lake_uri}",
            "cannot hold the default MLflow database, which needs a local folder",
            "set tracking.uri to an MLflow server, like http://127.0.0.1:5000",
        )
    for name in ("mlflow.db", "mlflow.db.lock", ARTIFACTS):
        files.within(lake_uri, name)
    return f"sqlite:///{files.local_path(lake_uri)}/mlflow.db"


def connect(tracking_uri: str | None, lake_uri: str, experiment: str = DEFAULT_EXPERIMENT) -> Tracking:
    """Connect to MLflow, and find or create the experiment.

    Args:
        tracking_uri: an http(s) or database URI, in which `${env:NAME}` and `${file:PATH}` are replaced by credentials;
            None for the SQLite database in the lake.
        lake_uri: the lake; with a SQLite database, artifacts are kept in its folder `mlartifacts`, or next to the
            database where the lake is not on this machine.
        experiment: name of the experiment.

    Raises:
        AltDiffusionError: the server cannot be reached within about ten seconds or refuses access.
    """
    given = tracking_uri or default_uri(lake_uri)
    try:
        uri = reveal(given)
    except MissingCredential as error:
        raise _unusable(
            given, f"names a credential that is missing ({error})", "set it, or correct tracking.uri"
        ) from None
    for name, value in _LATER.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif "://" not in uri or uri.startswith("file:"):
        raise _unusable(uri, "is a folder, which MLflow 3 no longer accepts", "write sqlite:///<folder>/mlflow.db")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks; our error has the reason
    with starting(uri):
        from mlflow import MlflowClient

        artifacts = database = None
        alone: AbstractContextManager[None] = nullcontext()
        if uri.startswith("sqlite:///"):
            database = os.path.abspath(uri.removeprefix("sqlite:///").partition("?")[0])
            alone = first_contact(database)
            # MLflow's own choice would be a folder in the working directory of the job.
            parent = files.local_path(lake_uri) if files.is_local(lake_uri) else os.path.dirname(database)
            artifacts = f"file://{os.path.abspath(parent)}/{ARTIFACTS}"
        with alone:
            if database is not None and files.is_local(lake_uri):
                reanchor(database, files.local_path(lake_uri))
                _forget_places()
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return Tracking(uri=redact(given), client=client, experiment_id=_experiment(client, experiment, artifacts))


def _forget_places() -> None:
    """Let MLflow look up again where runs have their artifacts: it keeps that per run for the life of a process."""
    from mlflow.tracking._tracking_service import utils

    getattr(utils, "_artifact_repos_cache", {}).clear()


@contextmanager
def starting(uri: str) -> Iterator[None]:
    """Run the calls of a job's start with short timeouts, and turn a failure into an error with a remedy."""
    try:
        with _environment(_START):
            yield
    except AltDiffusionError:
        raise
    except Exception as error:  # MLflow raises its own, requests' and SQLAlchemy's errors here
        raise _failed(uri, error) from error


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Run long calls, and turn an outage into an error with a remedy."""
    try:
        yield
    except AltDiffusionError:
        raise
    except Exception as error:
        if is_refusal(error):  # a refused record, or a defect of ours
            raise
        raise _failed(uri, error) from error


def _failed(uri: str, error: Exception) -> AltDiffusionError:
    text = f"{type(error).__name__}: {first_line(error)}"
    remedy = "start it or correct tracking.uri"
    if any(mark in text for mark in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED", "authenticated")):
        remedy = ACCESS
    elif "out-of-date database schema" in text:
        return _other_schema(uri, text)
    elif "already exists" in text or "no such table" in text or "not a database" in text:
        remedy = (
            "its tables are damaged: move the file away and run `altdiffusion lineage rebuild --lake LAKE`, which "
            "makes it again from the lake's manifests"
        )
    elif uri.startswith("sqlite"):
        remedy = (
            "check that the database can be written and is not held by another program, and that its disk is not full"
        )
    return _unusable(uri, f"does not answer as it should ({text})", remedy)


def _other_schema(uri: str, text: str) -> AltDiffusionError:
    """Return the error for a database of an older or a newer MLflow, for which MLflow has the same message."""
    import mlflow

    found = re.search(r"found version (\w+)", text)
    schema = found[1] if found else "unknown"
    if found is None or is_known_migration(schema):
        problem = f"was written by an MLflow older than the installed {mlflow.__version__} (schema {schema})"
        remedy = f"make a copy of the database, then run `mlflow db upgrade '{redact(uri)}'`"
    else:
        problem = f"was written by an MLflow newer than the installed {mlflow.__version__} (schema {schema})"
        remedy = (
            f"use a version newer than mlflow {mlflow.__version__}: the one that wrote it (`pip show mlflow` there), "
            "or keep it and run `altdiffusion lineage rebuild --lake LAKE --tracking-uri URI` into an empty database"
        )
    return _unusable(uri, problem, remedy)


def _unusable(uri: str, problem: str, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(f"MLflow {uri}", problem, remedy)  # which hides credentials in the address


def _probe(uri: str) -> None:
    """Check that the server gives any HTTP answer within seconds."""
    reason = ""
    address = urllib.parse.urlsplit(uri.rstrip("/") + "/health")
    plain = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()  # urllib takes no credentials there
    for attempt in range(PROBES):
        try:
            opener = urllib.request.urlopen(plain, timeout=PROBE_TIMEOUT_S)
            opener.close()
            return
        except urllib.error.HTTPError:
            return  # it answers; the first call shows whether it grants access
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = str(getattr(error, "reason", error))
        if attempt < PROBES - 1:
            time.sleep(0.7)
    raise _unusable(
        uri,
        f"cannot be reached ({reason}, {PROBES} tries)",
        "start it (mlflow server --host 127.0.0.1) or correct tracking.uri; null is the database in the lake",
    )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block, since MLflow reads its limits at each call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    for last in (False, True):
        known = client.get_experiment_by_name(name)
        if known is not None:
            if known.lifecycle_stage != "active":
                client.restore_experiment(known.experiment_id)
            return str(known.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=artifacts, tags={NOTE: EXPERIMENT}))
        except Exception as error:
            if last or getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
    raise AssertionError("unreachable")


ACCESS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def is_denied(error: BaseException) -> bool:
    """Return whether a server refuses access (401, 403), which lasts until the credentials are changed."""
    return getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")


def is_refusal(error: BaseException) -> bool:
    """Return whether this record will never be accepted, so that it is skipped instead of tried again.

    An outage (connection, credentials, full disk, locked database, an object store that is down) is not a refusal.
    Any error that is not known as an outage counts as a defect of the record, since one record must not block others.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if isinstance(error, (RequestException, ConnectionError, TimeoutError)):
        return False
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _NO_SUCH_FILE
    return type(error).__module__.partition(".")[0] not in _OUTAGES_OF
