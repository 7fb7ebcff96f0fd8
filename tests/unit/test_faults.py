"""docs/faults.md: every promise and every fault is there, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
ROWS = {
    cells[1].strip(): cells
    for cells in (line.split("|") for line in PAGE.splitlines() if re.match(r"\| P?\d+ \|", line))
}
PROMISES, FAULTS = 17, 75


def test_every_promise_and_every_fault_has_a_row() -> None:
    wanted = [*(f"P{number}" for number in range(1, PROMISES + 1)), *map(str, range(1, FAULTS + 1))]
    assert list(ROWS) == wanted


def test_every_row_is_held_by_tests_that_exist() -> None:
    missing = []
    for number, cells in ROWS.items():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[-2])
        assert named and all(cell.strip() for cell in cells[2:-1]), f"row {number} names no test"
        for file, test in named:
            path = ROOT / "tests" / file
            if not path.is_file() or not re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                missing.append(f"row {number}: {file}::{test}")
    assert not missing, missing
