"""A real Prometheus that scrapes real jobs on Ray has data for every panel of the dashboard whose part ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_panel_of_a_part_that_ran_has_data() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH: apt-get install prometheus")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dashboard"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "11 alert rules are loaded" in done.stdout and " 0 error" in done.stdout
