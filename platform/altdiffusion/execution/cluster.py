"""The one place that connects to Ray: an embedded one on a laptop, or the cluster that was named.

Every retry that Ray does by itself is bounded here (a task killed for memory is otherwise retried for ever). What Ray
prints for its own developers on stderr is silenced, because failures reach the user as exceptions.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import altdiffusion
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.terminal import without_noise

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 256 * 2**20  # descriptors only pass through it
START_TIMEOUT_S = 1800.0
"""Time that workers may wait for their nodes where a config does not state another."""
SOURCE_ROOT = Path(altdiffusion.__file__).resolve().parents[1]

_SETTINGS = {
    "RAY_task_oom_retries": "2",
    "RAY_memory_usage_threshold": "0.95",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
}
_CLUSTER_SETTINGS = {"RAY_timeout_ms_task_wait_for_death_info": "20000"}
"""Settings where nodes can go away.

Ray needs about 15 s to see that a node is gone. A unit on that node has to wait this long for its next try: otherwise
its tries are used up within seconds, and the whole pool is started again.
"""
_EMBEDDED: set[str] = set()
"""Addresses of the Ray instances that this process started."""
_REMEDY = (
    "start the cluster, fix the address, or leave it out to run on this machine; where the cluster's gateway is "
    "only reachable over its job API, use `ray job submit`"
)


_waits: list[float] = []


def wait_for_nodes_s() -> float:
    """Return how many seconds workers may wait for the nodes of a cluster."""
    return _waits[-1] if _waits else START_TIMEOUT_S


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    wait_for_nodes_s: float | None = None,
) -> None:
    """Connect this process to Ray; nothing happens if it is connected already.

    Args:
        address: `host:port` of a head, "auto" for the cluster on this machine, None for `RAY_ADDRESS` (which
            `ray job submit` sets) or, where that is not set either, an embedded Ray that ends with this process.
        num_cpus: logical CPUs of the embedded Ray; by default those that this process may use.
        num_gpus: GPUs of the embedded Ray; by default none, because hardware is declared and not probed.
        wait_for_nodes_s: seconds that workers may wait for nodes of a cluster; None leaves it as it is.

    Raises:
        AltDiffusionError: nothing answers at that address within about 20 s, or the cluster refuses this process.
    """
    if wait_for_nodes_s is not None:
        _waits[:] = [wait_for_nodes_s]
    where = address or os.environ.get("RAY_ADDRESS")
    for name, value in (_SETTINGS if where is None else _SETTINGS | _CLUSTER_SETTINGS).items():
        os.environ.setdefault(name, value)
    check_token_file()
    if where is None:
        _embedded_settings()
    import ray

    if ray.is_initialized():
        return
    with without_noise(b"RAY_BACKEND_LOG_LEVEL"):
        if where is None:
            context = _start(num_cpus or len(os.sched_getaffinity(0)), num_gpus or 0)
            _EMBEDDED.add(str(context.address_info["gcs_address"]))
        else:
            _join(where)
    _quiet()


def connect_caller() -> None:
    """Connect a program that uses the Python API, which may have connected itself.

    Raises:
        AltDiffusionError: as of `connect`; or the program imported Ray, which reads its settings then, but did not
            connect.
    """
    ray = sys.modules.get("ray")
    is_embedded_next = "RAY_AUTH_MODE" not in os.environ and "RAY_ADDRESS" not in os.environ
    if ray is not None and not ray.is_initialized() and is_embedded_next:
        raise AltDiffusionError(
            "Ray", "was imported before it was connected", "call ray.init() first, or leave out `import ray`"
        )
    connect()


def check_token_file() -> None:
    """Refuse a token that others on this machine can read, and with which they could run code on the whole cluster.

    Ray takes it from RAY_AUTH_TOKEN, else from the file RAY_AUTH_TOKEN_PATH, else from ~/.ray/auth_token, and makes
    that file readable for everyone.

    Raises:
        AltDiffusionError: the file's mode grants access to its group or to others.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return  # Ray itself reports that, with a remedy
    if mode & 0o077:
        raise AltDiffusionError(
            f"token file {path}",
            f"can be read by others (mode {mode:04o})",
            f"run `chmod 600 {path}`; a mounted secret needs its mode in the mount (Kubernetes: defaultMode: 0400)",
        )


def is_embedded() -> bool:
    """Return whether this process started its Ray, which then has this machine's resources and gets no others."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().gcs_address in _EMBEDDED


def _start(num_cpus: int, num_gpus: int) -> Any:
    """Start the embedded Ray, with a second attempt where the first took longer than the 30 s that Ray allows."""
    import ray

    for last in (False, True):
        try:
            return ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:
            ray.shutdown()
            if last:
                raise AltDiffusionError(
                    "embedded Ray",
                    f"did not start ({first_line(error)})",
                    "this machine is short of CPU or memory now: try again, or use execution.backend=inline",
                ) from error
    raise AssertionError("unreachable")


def call(function: Callable[..., T], *arguments: Any, num_cpus: float = 1, num_gpus: float = 0) -> T:
    """Return the result of a function that runs once on a worker of the cluster, which has what the driver may lack.

    Raises:
        Exception: any exception of the function itself.
    """
    import ray

    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=2)(function)
    try:
        return cast(T, ray.get(task.remote(*arguments)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def shutdown() -> None:
    """Leave the cluster; an embedded one ends. Nothing happens where Ray was never used."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def _embedded_settings() -> None:
    """Set what the embedded Ray's own processes inherit: a token of this process alone, and the path of our code."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    known = os.environ.get("PYTHONPATH", "")
    parts = [str(Path(part).resolve()) for part in known.split(os.pathsep) if part]
    if str(SOURCE_ROOT) not in parts:
        parts.append(str(SOURCE_ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(parts)  # absolute: a worker has another working directory


def _join(address: str) -> None:
    import ray

    if address != "auto":
        probe(address)
    # A submitted job brings its code in its own runtime environment; any other driver sends the package along.
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    runtime_env: dict[str, Any] | None = None if inside_job else {"py_modules": [str(SOURCE_ROOT / "altdiffusion")]}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    except Exception as error:  # refused, unauthenticated, another Ray version: each has its own class
        raise AltDiffusionError(
            f"Ray address {address}",
            f"cannot be joined ({first_line(error)})",
            "check that RAY_AUTH_TOKEN (or its file) and Ray's version are the cluster's",
        ) from error


def probe(address: str) -> None:
    """Refuse an address where no Ray head answers; `ray.init` itself would try for more than two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address.startswith("ray://") or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise AltDiffusionError(f"Ray address {address}", "is not of the form host:port", "write e.g. 10.0.0.5:6379")
    what = f"Ray address {address}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise AltDiffusionError(what, f"is unreachable ({error.strerror or error})", _REMEDY) from error
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    import grpc  # type: ignore[import-untyped, unused-ignore]

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise AltDiffusionError(what, "is reachable, but no Ray head answers there", _REMEDY) from error


def _quiet() -> None:
    """Switch off Ray's progress bars, messages and tracebacks: only `Progress` and exceptions are printed."""
    import ray.data
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None  # it prints every death of a process, intended or not

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not is_embedded():
        context.wait_for_min_actors_s = max(1, round(wait_for_nodes_s()))
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
