"""A curation killed with SIGKILL at random moments and started again gives the digest of an undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Workspace, digests, images, line, prepared
from tests.killed import killed

__all__ = ["images", "line", "prepared"]  # fixtures of the end-to-end tests


def start(workspace: Workspace, lake: Path, images: str) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "jobs.curate", "--config", "jobs/configs/demo/curate.yaml", f"lake={lake}", images),
        *("execution.backend=inline", "download.rows_per_unit=40"),
    ]
    return subprocess.Popen(
        command,
        cwd=workspace.path,
        env={**os.environ, **workspace.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(workspace: Workspace, lake: Path, images: str) -> None:
    process = start(workspace, lake, images)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-3000:]


@pytest.mark.parametrize("seed", [1])
def test_ten_kills_leave_the_digest_as_it_is(prepared: Workspace, images: str, tmp_path: Path, seed: int) -> None:
    finish(prepared, tmp_path / "undisturbed", images)
    lake = tmp_path / "killed"
    hits = killed(lambda: start(prepared, lake, images), lake, kills=10, seed=seed)
    assert hits >= 5, f"only {hits} of 10 runs were still running when they were to be killed"
    finish(prepared, tmp_path / "killed", images)
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_hundred_kills(prepared: Workspace, images: str, tmp_path: Path, seed: int) -> None:
    test_ten_kills_leave_the_digest_as_it_is(prepared, images, tmp_path, seed)
