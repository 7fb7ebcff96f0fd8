"""MLflow's own server on the store of a lake: one worker on loopback, ended together with the command that started it.

`mlflow server` as it comes starts four workers and a job executor, which take 2 GB and minutes on a busy machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.anchor import ARTIFACTS
from altdiffusion.lineage.tracking import Tracking, connect, default_uri, run_page, workflow_page
from altdiffusion.storage import files

HOST = "127.0.0.1"
START_TIMEOUT_S = 300.0
"""Longest wait for the first answer: seconds on an idle machine, minutes on a busy one."""
END_TIMEOUT_S = 10.0
_TAIL_BYTES = 2000
_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that has answered."""

    url: str
    process: subprocess.Popen[bytes]
    links: tuple[tuple[str, str], ...]
    """What to open: name and address, the newest run first."""

    def wait(self) -> None:
        """Wait until the server has ended.

        Raises:
            AltDiffusionError: it ended by itself.
        """
        status = self.process.wait()
        raise AltDiffusionError(f"MLflow at {self.url}", f"has ended (status {status})", "run the same command again")


@contextlib.contextmanager
def serving(lake_uri: str, port: int | None = None) -> Iterator[Server]:
    """Run MLflow on the lake's database for the duration of the block, and end all its processes afterwards.

    Args:
        lake_uri: a lake on this machine.
        port: of loopback; None for a free one.

    Raises:
        AltDiffusionError: the lake holds no database, or one of another version of MLflow; the port is in use; or the
            server does not start.
    """
    store = _store(lake_uri)
    chosen = _port(port)
    tracking = connect(None, lake_uri)  # which checks the database, and makes the addresses in it those of this lake
    url = f"http://{HOST}:{chosen}"
    links = tuple(_links(tracking, url))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(store, lake_uri, chosen),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its children are ended with it; Ctrl-C reaches this process alone
            env={**os.environ, **_ENVIRONMENT},
        )
        try:
            _wait(url, process, log)
            yield Server(url=url, process=process, links=links)
        finally:
            _end(process)


def _store(lake_uri: str) -> str:
    if not files.is_local(lake_uri):
        raise AltDiffusionError(
            f"lake {lake_uri}",
            "is not on this machine, so its runs are in the MLflow server of its jobs",
            "open the address in tracking.uri of the jobs' config in a browser",
        )
    uri = default_uri(lake_uri)
    if not files.exists(files.join(lake_uri, "mlflow.db")):
        raise AltDiffusionError(
            f"lake {lake_uri}",
            "holds no MLflow database (mlflow.db): no job has logged into it",
            "run a job with tracking.uri null, or run `altdiffusion lineage rebuild --lake LAKE` to fill one from "
            "the manifests",
        )
    return uri


def _command(store: str, lake_uri: str, port: int) -> list[str]:
    artifacts = f"file://{os.path.abspath(files.local_path(lake_uri))}/{ARTIFACTS}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return [*command, "--backend-store-uri", store, "--serve-artifacts", "--artifacts-destination", artifacts]


def _port(asked: int | None) -> int:
    """Return a port that can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind((HOST, asked or 0))
        except (OSError, OverflowError) as error:
            raise AltDiffusionError(
                f"port {asked} of {HOST}", f"cannot be used ({error})", "give another --port, or none for a free one"
            ) from None
        return int(probe.getsockname()[1])


def _links(tracking: Tracking, url: str) -> Iterator[tuple[str, str]]:
    """Yield what to open, in MLflow's view for training: its default view shows none of it."""
    experiments = {found.experiment_id: found.name for found in tracking.client.search_experiments()}
    newest: list[Any] = tracking.client.search_runs(
        list(experiments), max_results=1, order_by=["attributes.start_time DESC"]
    )
    for run in newest:
        name = experiments[run.info.experiment_id]
        yield f"newest run, {run.info.run_name}", run_page(url, run.info.experiment_id, run.info.run_id)
        yield f"its experiment, {name}", workflow_page(url, f"experiments/{run.info.experiment_id}/runs")
        yield "its models", workflow_page(url, f"experiments/{run.info.experiment_id}/models")
    yield "all experiments", workflow_page(url, "experiments")


def _wait(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows no loopback
    while process.poll() is None and time.monotonic() < end:
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
    last = log.read().decode(errors="replace").strip()
    ended = process.poll()
    problem = f"ended with status {ended}" if ended is not None else f"gave no answer within {START_TIMEOUT_S:g} s"
    raise AltDiffusionError(
        f"MLflow at {url}", f"{problem}; its last lines:\n{last}\n", "correct what they name, then run it again"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children, first politely."""
    for number, patience in ((signal.SIGTERM, END_TIMEOUT_S), (signal.SIGKILL, END_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            process.poll()
            if not _lives(process.pid):
                return
            time.sleep(0.05)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
