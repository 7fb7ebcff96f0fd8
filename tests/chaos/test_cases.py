"""Every chaos case of this folder that is not a test of its own, and the registry."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.cases import CASES
from tests.chaos.outcome import Case

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [case for case in CASES if case.run is not None], ids=lambda case: case.name)
def test_a_case_ends_as_it_must(case: Case, tmp_path: Path) -> None:
    assert case.run is not None
    print(case.run(tmp_path, random.Random(case.seed)))


def test_every_case_has_a_name_and_tests_that_exist() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert (case.run is None) == bool(case.tests)
        for one in case.tests:
            file, name = one.split("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), one


def test_a_case_has_what_its_test_notes_and_a_skipped_test_fails_it(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text(
        "import pytest\n"
        "def test_it():\n    print('x\\nnote: 3 of 8 were done')\n"
        "def test_no():\n    pytest.skip('no')\n"
    )
    found = [
        report.pytest(Case(name="x", fault="y", how="z", tests=(f"{file}::{test}",))) for test in ("test_it", "test_no")
    ]
    assert found[0] == ("", ["3 of 8 were done"])
    assert "1 skipped" in found[1][0]
