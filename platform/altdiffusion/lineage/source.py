"""What ran a job: who started it, from which code, on what kind of machine, with which libraries and command line.

Every job records this, in MLflow and in the lake (`lineage.starts`). It describes a start and not a result, so no
digest and no fingerprint depends on it. Credentials in the command line are hidden, and hosts are not named.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import altdiffusion
from altdiffusion.credentials import redacted_command
from altdiffusion.storage.files import sha256_hex

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "mlflow")
NO_CHECKOUT = "not a git checkout"
CODE = ("version", "commit", "working_copy", "python", *LIBRARIES)
"""The facts that state which code ran."""
_ROOT = Path(__file__).resolve().parents[3]
"""Root of the git checkout; of an installed package, a folder of Python."""
_CODE_FOLDERS = ("platform/", "pipelines/", "jobs/")
_GIT_TIMEOUT_S = 20.0
_GPUS = Path("/proc/driver/nvidia/gpus")
_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)


def source_facts() -> dict[str, str]:
    """Return what runs this process: the facts of CODE, `user`, `host` (its class) and `command`.

    What is not known, such as a library that is not installed, is left out.
    """
    facts = {"version": altdiffusion.__version__, **git_facts(_ROOT), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    with contextlib.suppress(KeyError, OSError, ImportError):  # a container's user without a name
        facts["user"] = getpass.getuser()
    return {**facts, "host": host_class(), "command": shlex.join(redacted_command(sys.orig_argv))}


def source_tags(job: str, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the same as MLflow's tags: its own for user, source and commit, and `altdiffusion.source.*`."""
    tags = {"mlflow.source.name": f"python -m jobs.{job}", "mlflow.source.type": "LOCAL"}
    if "user" in facts:
        tags["mlflow.user"] = facts["user"]
    if "commit" in facts and facts["commit"] != NO_CHECKOUT:
        tags["mlflow.source.git.commit"] = facts["commit"]
    return {**tags, **{f"altdiffusion.source.{key}": value for key, value in facts.items()}}


@functools.lru_cache(maxsize=1)
def git_facts(root: Path) -> dict[str, str]:
    """Return `commit`, and as `working_copy` whether it was clean; a digest distinguishes changes.

    Untracked files count where they can be imported: in the folders of the code. A process asks once, because it goes
    on with the code that it has imported.
    """
    if not (root / ".git").exists():  # an installed package, in whatever checkout its environment may be
        return {"commit": NO_CHECKOUT}
    head, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=normal")
    if head is None:
        return {"commit": "git cannot read the checkout"}
    facts = {"commit": head.decode().strip()}
    if status is None:
        return {**facts, "working_copy": "not known: git status failed"}
    changes = [
        line
        for line in status.decode("utf-8", "replace").splitlines()
        if not line.startswith("??") or line[3:].startswith(_CODE_FOLDERS)
    ]
    if not changes:
        return {**facts, "working_copy": "clean"}
    difference = _git(root, "diff", "--no-ext-diff", "HEAD") or b""
    digest = sha256_hex(difference + "\n".join(changes).encode())[:12]
    return {**facts, "working_copy": f"dirty, {len(changes):,} changed files, {digest}"}


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return what git prints, without its taking a lock; None where it is not installed, fails or hangs."""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, timeout=_GIT_TIMEOUT_S, check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout if found.returncode == 0 else None


def host_class() -> str:
    """Return the class of this machine, such as `Linux x86_64, 16 CPUs, 128 GiB, 1 x NVIDIA H100`."""
    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count() or 0} CPUs"]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    return ", ".join([*parts, *gpus(_GPUS)])


def gpus(folder: Path) -> list[str]:
    """Return the number and model of the machine's NVIDIA GPUs, from the driver's files; none without a driver."""
    models: Counter[str] = Counter()
    for path in sorted(folder.glob("*/information")):
        try:
            found = _MODEL.search(path.read_text())
        except OSError:
            continue
        models[found[1] if found else "unknown GPU"] += 1
    return [f"{count} x {model}" for model, count in sorted(models.items())]
