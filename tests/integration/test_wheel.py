"""The wheel builds, holds every file of the packages, and installs in a clean environment."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import altdiffusion

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_is_whole_and_runs_without_dependencies_where_none_is_needed(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    tracked = run("git", "ls-files", "platform/altdiffusion", "pipelines", "jobs", cwd=ROOT).splitlines()
    with zipfile.ZipFile(wheel) as packed:
        missing = {name.removeprefix("platform/") for name in tracked} - set(packed.namelist())
    assert not missing

    venv.create(tmp_path / "clean", with_pip=True)
    python = str(tmp_path / "clean" / "bin" / "python")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    shown = run(python, "-c", "import altdiffusion; print(altdiffusion.__version__, altdiffusion.__file__)")
    assert shown.split()[0] == altdiffusion.__version__ and str(tmp_path) in shown
    assert "python -m jobs.train" in run(python, "-m", "jobs.train", "--help")
    assert (tmp_path / "clean" / "bin" / "altdiffusion").exists()


def run(*command: str, cwd: Path | None = None) -> str:
    """Return what a command prints; without PYTHONPATH, so that only what is installed is found."""
    done = subprocess.run(
        command, cwd=cwd or "/", capture_output=True, text=True, check=False, timeout=300, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
