"""The MLflow server: that it answers, in which version, to whom, and to which host names."""

from __future__ import annotations

import base64
import http.client
import os
import socket
from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import urlsplit

from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.errors import AltDiffusionError

TIMEOUT_S = 10.0
_SERVE = "serve it with users and passwords: deploy/mlflow/serve.sh (docs/mlflow.md)"
_SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def check_tracking(uri: str) -> Iterator[Line]:
    """Check an MLflow server.

    Args:
        uri: `http://host:port` or `https://…`.
    """
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        remedy = "give http://HOST:PORT; a file or a database needs no check"
        yield Line(FAIL, "mlflow", f"{uri} is not the address of a server", remedy)
        return
    status, text = _get(uri, "/version")
    if status is None:
        remedy = "start it (deploy/mlflow/serve.sh), open the way to its port, or correct --tracking-uri"
        yield Line(FAIL, "mlflow", f"{uri} cannot be reached ({text})", remedy)
        return
    anonymous, _ = _get(uri, _SEARCH)
    is_local = _is_loopback(address.hostname)
    if status == 200 and text.strip() != version("mlflow"):
        found = f"server {text.strip()[:20]}, client {version('mlflow')}"
        yield Line(WARN, "mlflow", found, "serve it from the same image as the jobs")
    if anonymous == 200 and not is_local:
        yield Line(FAIL, "mlflow auth", f"{uri} answers without a password", _SERVE)
    elif anonymous == 200:
        yield Line(OK, "mlflow auth", f"{uri} answers without a password, on this machine only")
    elif anonymous == 403:
        remedy = f"name it in the server's --allowed-hosts (MLFLOW_HOSTS of serve.sh): {address.netloc}"
        yield Line(FAIL, "mlflow", f"the server refuses the host name {address.netloc}", remedy)
        return
    else:
        yield from _as_user(uri, anonymous)
    if address.scheme == "http" and not is_local and anonymous == 401:
        yield Line(WARN, "mlflow auth", "passwords travel in plain text (http)", "put a proxy with TLS in front of it")
    if anonymous in (200, 401) and _get(uri, "/version", {"Host": "doctor.invalid"})[0] == 200:
        remedy = "start it with --allowed-hosts (MLFLOW_HOSTS of serve.sh)"
        yield Line(OK if is_local else WARN, "mlflow hosts", "it answers to any host name", "" if is_local else remedy)


def _as_user(uri: str, anonymous: int | None) -> Iterator[Line]:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user is None or password is None:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield Line(FAIL, "mlflow auth", f"{uri} answers {anonymous} without a password, and none is set", remedy)
        return
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    status, _ = _get(uri, _SEARCH, {"Authorization": f"Basic {basic}"})
    if status == 200:
        yield Line(OK, "mlflow auth", f"{uri} answers {anonymous} without a password, and takes that of {user}")
    else:
        remedy = "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield Line(FAIL, "mlflow auth", f"{uri} answers {status} to the user {user}", remedy)


def _get(uri: str, path: str, headers: dict[str, str] | None = None) -> tuple[int | None, str]:
    """Return the status and the beginning of the body; None and the reason where nothing answers."""
    address = urlsplit(uri)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(address.hostname or "", address.port, timeout=TIMEOUT_S)
    except (ValueError, http.client.InvalidURL) as error:
        raise AltDiffusionError(f"address {uri}", f"is invalid ({error})", "give http://HOST:PORT") from error
    try:
        connection.request("GET", address.path.rstrip("/") + path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return None, str(error) or type(error).__name__
    finally:
        connection.close()


def _is_loopback(host: str) -> bool:
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(one.startswith("127.") or one == "::1" for one in found)
