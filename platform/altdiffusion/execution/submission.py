"""Submission of a job to a cluster's job API, from any folder: package, config, tunnel and token."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution import cluster

TUNNEL_S = 60.0
"""Seconds that a tunnel to the head may take."""
_PACKAGES = ("altdiffusion", "jobs", "pipelines")
_CONFIG = "config.yaml"
_TOKEN_FILE = "~/.ray/auth_token"


@contextlib.contextmanager
def job_api(address: str | None, cluster_file: str | None) -> Iterator[str]:
    """Yield the http address of a cluster's job API, through a tunnel of Ray's launcher for a cluster file.

    Args:
        address: `http://host:port`; None takes RAY_ADDRESS where no cluster file is given.

    Raises:
        AltDiffusionError: the address is missing, or the tunnel does not open.
    """
    if cluster_file is None:
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        if not address or not address.startswith(("http://", "https://")):
            raise AltDiffusionError(
                f"address {address or 'of the cluster'}",
                "is not that of a job API" if address else "is missing",
                "give --cluster cluster.yaml, or --address http://HOST:8265",
            )
        yield address
        return
    if not os.path.isfile(cluster_file):
        raise AltDiffusionError(f"cluster file {cluster_file}", "is missing", "give the file of `ray up`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    command = [ray if os.path.exists(ray) else "ray", "dashboard", cluster_file, "--port", str(port)]
    with tempfile.TemporaryFile() as said:
        tunnel = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            _wait_for(tunnel, port, said)
            yield f"http://127.0.0.1:{port}"
        finally:
            tunnel.terminate()
            tunnel.wait()


def _wait_for(tunnel: subprocess.Popen[bytes], port: int, said: Any) -> None:
    ends = time.monotonic() + TUNNEL_S
    while tunnel.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.2)
    said.seek(0)
    lines = said.read().decode(errors="backslashreplace").strip().splitlines()
    raise AltDiffusionError(
        "tunnel to the head",
        f"did not open within {TUNNEL_S:g} s ({lines[-1] if lines else 'no output'})",
        "check that the cluster is up (`ray up`) and that this machine reaches its head by ssh",
    )


def read_config(config: str) -> str:
    """Return the text of a job's config.

    Raises:
        AltDiffusionError: the file is missing or is not YAML.
    """
    try:
        text = Path(config).read_text(encoding="utf-8")
        if not isinstance(yaml.safe_load(text), dict):
            raise AltDiffusionError(f"config {config}", "is not a mapping", "give a job's YAML file")
    except OSError as error:
        raise AltDiffusionError(f"config {config}", f"cannot be read ({error.strerror})", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AltDiffusionError(f"config {config}", f"is not YAML ({first_line(error)})", "correct it") from error
    return text


@contextlib.contextmanager
def working_folder(config: str) -> Iterator[str]:
    """Yield a folder with this installation's packages and a config's text, as a job's working directory."""
    with tempfile.TemporaryDirectory(prefix="altdiffusion-job-") as folder:
        for name in _PACKAGES:
            shutil.copytree(_package(name), Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, _CONFIG).write_text(config, encoding="utf-8")
        yield folder


def _package(name: str) -> Path:
    """Return the folder of one of our packages: next to `altdiffusion` where installed, above it in a checkout."""
    for root in (cluster.SOURCE_ROOT, cluster.SOURCE_ROOT.parent):
        if (root / name).is_dir():
            return root / name
    raise AltDiffusionError(f"package {name}", "is not installed", "install altdiffusion-platform again")


def submit(address: str, job: str, config: str, overrides: Sequence[str], env: Mapping[str, str]) -> tuple[Any, str]:
    """Submit `python -m jobs.JOB` with a config and overrides; return Ray's client and the job's id.

    Args:
        address: of the job API.
        config: text of the config.
        env: further environment variables of the job.

    Raises:
        AltDiffusionError: the token file is readable for others, or the job API refuses.
    """
    import shlex

    if "RAY_AUTH_MODE" not in os.environ and os.path.exists(os.path.expanduser(_TOKEN_FILE)):
        os.environ["RAY_AUTH_MODE"] = "token"
    cluster.check_token_file()
    from ray.job_submission import JobSubmissionClient

    with working_folder(config) as folder:
        try:
            client = JobSubmissionClient(address)
            job_id = client.submit_job(
                entrypoint=shlex.join(["python", "-m", f"jobs.{job}", "--config", _CONFIG, *overrides]),
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONPATH": ".", **env}},
            )
        except (RuntimeError, ConnectionError, OSError) as error:
            raise AltDiffusionError(
                f"job API {address}",
                f"does not take the job ({first_line(error)})",
                "check the address, and that ~/.ray/auth_token is the cluster's token",
            ) from error
    return client, str(job_id)
