"""Every check of one machine, in order."""

from __future__ import annotations

import os
from dataclasses import dataclass

from altdiffusion.doctor.clock import check_clock
from altdiffusion.doctor.disks import check_disks
from altdiffusion.doctor.gpus import check_gpus
from altdiffusion.doctor.lake import check_lake
from altdiffusion.doctor.limits import check_limits
from altdiffusion.doctor.line import Line, guarded
from altdiffusion.doctor.metadata_service import check_metadata
from altdiffusion.doctor.resolver import check_resolver
from altdiffusion.doctor.token import check_token
from altdiffusion.doctor.tracking_server import check_tracking
from altdiffusion.doctor.versions import check_versions


@dataclass(frozen=True)
class Wanted:
    """What a job will use; None leaves a check out."""

    lake: str | None = None
    tracking: str | None = None
    spill: str | None = None
    lock: str | None = None


def check_machine(wanted: Wanted) -> list[Line]:
    """Return the lines of this machine."""
    checks = {
        "versions": lambda: check_versions(wanted.lock),
        "gpus": check_gpus,
        "ray token": check_token,
        "disks": lambda: check_disks(wanted.spill),
        "limits": check_limits,
        "resolver": check_resolver,
        "metadata": check_metadata,
    }
    if wanted.lake is not None:
        lake = wanted.lake
        checks["lake"] = lambda: check_lake(lake)
    if wanted.tracking is not None:
        tracking = wanted.tracking
        checks["mlflow"] = lambda: check_tracking(tracking)
    server = _with_a_date(wanted)
    if server is not None:
        checks["clock"] = lambda: check_clock(server)
    return [line for name, check in checks.items() for line in guarded(name, check)]


def _with_a_date(wanted: Wanted) -> str | None:
    """Return the address of a server that states the time: the lake's store, else MLflow's."""
    if wanted.lake is not None and wanted.lake.startswith("s3://"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return (
            os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or f"https://s3.{region}.amazonaws.com"
        )
    if wanted.lake is not None and wanted.lake.startswith(("gs://", "gcs://")):
        return "https://storage.googleapis.com"
    if wanted.tracking is not None and wanted.tracking.startswith(("http://", "https://")):
        return wanted.tracking
    return None
