"""A hundred losses of each stage are what they were: exactly on known arithmetic, closely elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.numerics import golden


def test_losses_are_what_they_were(tmp_path: Path) -> None:
    known = json.loads(golden.FILE.read_text())
    found = golden.losses(tmp_path)
    assert {stage: len(values) for stage, values in found.items()} == dict.fromkeys(
        ["distillation", *golden.STAGES], golden.STEPS
    )
    if golden.arithmetic() in known:
        assert found == known[golden.arithmetic()]
        return
    for stage, values in next(iter(known.values())).items():
        assert found[stage] == pytest.approx(values, rel=1e-3), f"{stage} on {golden.arithmetic()}"
