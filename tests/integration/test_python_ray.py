"""`to_ray`: the example of docs/python.md, and every row once, read by workers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.image_lake import ROWS, body, publish
from tests.unit.test_python_api import EXAMPLES, take_down

READ = """
version = altdiffusion.Lake("lake").version("images")
rows = version.to_ray(columns=["sample_id", "image"]).take_all()
print(sorted((row["sample_id"], hashlib.sha256(row["image"]).hexdigest()) for row in rows))
"""
COUNT = """
print(altdiffusion.Lake("lake").version("images").to_ray(columns=["caption"]).count())
"""


def run(code: str, folder: Path) -> list[str]:
    """Run code as a program of its own, which connects to Ray itself; return what it printed."""
    code = f"import hashlib\nimport altdiffusion\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_ray_reads_each_row_once_and_leaves_out_what_was_taken_down(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    publish(lake)
    *example, rows = run(EXAMPLES["Ray"] + READ, tmp_path)
    assert example[-1] == f"{ROWS} 6.0"
    assert rows == str(sorted((row - 5, hashlib.sha256(body(row)).hexdigest()) for row in range(ROWS)))
    take_down(lake, 3)
    assert run(COUNT, tmp_path)[-1] == str(ROWS - 1)
