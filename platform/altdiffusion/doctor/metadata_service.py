"""The cloud's metadata service, which hands out the machine's credentials to whatever can make a request."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from altdiffusion.doctor.line import FAIL, OK, WARN, Line

ADDRESS = "http://169.254.169.254"
TIMEOUT_S = 2.0
_AWS = (
    "aws ec2 modify-instance-metadata-options --instance-id ID --http-tokens required "
    "--http-put-response-hop-limit 1; cluster.yaml sets both"
)
_RULE = "Kubernetes: deploy/kuberay/network.yaml denies it"


def check_metadata() -> Iterator[Line]:
    """Check that a plain request, such as a malicious address provokes, gets nothing.

    AWS_EC2_METADATA_SERVICE_ENDPOINT names another address of the service, as it does for AWS's own clients.
    """
    given = urlsplit(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ADDRESS)
    address = (given.hostname or "", given.port or 80)
    status = _plain(address, "/latest/meta-data/")
    if status is None:
        yield Line(OK, "metadata", "cannot be reached from here")
    elif status == 200:
        yield Line(FAIL, "metadata", "answers a plain request (IMDSv1)", _AWS)
    elif _plain(address, "/", {"Metadata-Flavor": "Google"}) == 200:
        yield Line(WARN, "metadata", "Google's, which asks for its header, can be reached", _RULE)
    else:
        yield Line(OK, "metadata", f"answers {status} without a session token (IMDSv2)")


def _plain(address: tuple[str, int], path: str, headers: dict[str, str] | None = None) -> int | None:
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
