"""`to_ray`: the example of docs/python.md, and every row once, read by workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import altdiffusion
from tests.image_lake import ROWS, body, publish
from tests.unit.test_python_api import run_example, take_down


def test_ray_reads_each_row_once_and_leaves_out_what_was_taken_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lake = str(tmp_path / "lake")
    publish(lake)
    run_example("Ray", tmp_path, monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] == f"{ROWS} 6.0"
    images = altdiffusion.Lake(lake).version("images")
    rows = images.to_ray(columns=["sample_id", "image"])
    assert sorted(row["sample_id"] for row in rows.take_all()) == [row - 5 for row in range(ROWS)]
    assert {row["image"] for row in rows.take_all()} == {body(row) for row in range(ROWS)}
    take_down(lake, 3)
    assert images.to_ray(columns=["caption"]).count() == ROWS - 1
