"""Versions: what this package requires, and what the lock pins."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.cluster import SOURCE_ROOT

PACKAGE = "altdiffusion-platform"
SHOWN = ("ray", "torch", "diffusers", "transformers", "pyarrow", "mlflow", "numpy")
_LOCKS = (SOURCE_ROOT.parent / "constraints.txt", Path("/opt/altdiffusion/constraints.txt"))
"""Where the lock is in a checkout and in the image of deploy/Dockerfile."""


def check_versions(lock: str | None = None) -> Iterator[Line]:
    """Check the installed packages against this package's requirements and against the lock.

    Args:
        lock: path of constraints; None takes the checkout's or the image's, if there is one.
    """
    have = installed()
    yield Line(OK, "versions", ", ".join(f"{name} {have.get(name, 'missing')}" for name in ("python", *SHOWN)))
    wrong = [misfit for text in _required() if (misfit := _misfit(text, have))]
    if wrong:
        in_checkout = (SOURCE_ROOT.parent / "pyproject.toml").is_file()
        remedy = "pip install -c constraints.txt " + ("-e ." if in_checkout else PACKAGE)
        yield Line(FAIL, "requirements", "; ".join(wrong[:4]) + _more(wrong, 4), remedy)
    path = Path(lock) if lock is not None else next((path for path in _LOCKS if path.is_file()), None)
    if path is None:
        yield Line(OK, "lock", "none here; --lock names one")
        return
    other = [f"{name} {have[name]}, not {pin}" for name, pin in read_lock(path).items() if have.get(name, pin) != pin]
    if other:
        remedy = f"pip install -c {path} '{PACKAGE}', or run the tests with what is installed"
        yield Line(WARN, "lock", f"{len(other)} differ: " + "; ".join(other[:4]) + _more(other, 4), remedy)
    else:
        yield Line(OK, "lock", f"every installed package of {path.name} has its version")


def installed() -> dict[str, str]:
    """Return the versions of Python and of every installed package, without the build (`+cpu`)."""
    found = {
        canonicalize_name(one.metadata["Name"]): one.version.partition("+")[0]
        for one in metadata.distributions()
        if one.metadata["Name"]
    }
    return found | {"python": platform.python_version()}


def read_lock(path: Path) -> dict[str, str]:
    """Return the pinned version of each package.

    Raises:
        AltDiffusionError: the file cannot be read, or has no line `name==version`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AltDiffusionError(f"lock {path}", f"cannot be read ({error})", "name a file of constraints") from error
    pins = [line.split()[0].partition("==") for line in lines if "==" in line and not line.lstrip().startswith("#")]
    if not pins:
        raise AltDiffusionError(f"lock {path}", "has no line name==version", "name a file of constraints")
    return {canonicalize_name(name.partition("[")[0]): pin.rstrip("\\;") for name, _, pin in pins}


def _required() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []


def _misfit(text: str, have: Mapping[str, str]) -> str:
    """Return in words how an installed package does not meet a requirement; empty if it does."""
    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return ""
    version = have.get(canonicalize_name(requirement.name))
    if version is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, not {requirement.specifier}"
    return ""


def _more(found: list[str], shown: int) -> str:
    return f" and {len(found) - shown} more" if len(found) > shown else ""
