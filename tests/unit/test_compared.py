"""The params of a run: few, and keys that its config has."""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.config import load_config, resolved
from altdiffusion.lineage.compared import COMPARED, compared

JOBS = ("curate", "encode", "evaluate", "generate", "import", "measure", "parallel", "score", "train")


def test_every_job_has_its_params() -> None:
    assert set(COMPARED) == set(JOBS)
    modules = {path.stem for path in Path("jobs").glob("*.py") if "leave(main(JOB))" in path.read_text()}
    assert modules == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_param_is_a_key_of_the_config(job: str) -> None:
    config = importlib.import_module(f"jobs.{job}").JOB.config
    for key in COMPARED[job]:
        assert _has(config, key.split(".")), key


def _has(kind: Any, keys: list[str]) -> bool:
    kinds = [part for part in (typing.get_args(kind) or (kind,)) if dataclasses.is_dataclass(part)]
    if not keys:
        return True
    hints = [typing.get_type_hints(part) for part in kinds]
    return any(keys[0] in hint and (len(keys) == 1 or _has(_plain(hint[keys[0]]), keys[1:])) for hint in hints)


def _plain(kind: Any) -> Any:
    return kind if isinstance(kind, types.UnionType) or not typing.get_args(kind) else typing.get_args(kind)[0] | None


@pytest.mark.parametrize("path", sorted(Path("jobs/configs/m18").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_has_at_most_twelve(path: Path) -> None:
    kind = path.stem.partition("-")[0]
    job = kind if kind in JOBS else "train"
    config = load_config(importlib.import_module(f"jobs.{job}").JOB.config, str(path), [])
    shown = compared(job, resolved(config))
    assert 1 <= len(shown) <= 12
    assert all(isinstance(value, str) and value for value in shown.values())


def test_a_config_without_the_keys_is_shown_whole() -> None:
    config: Mapping[str, Any] = {"stage": "quality", "optimizer": {"lr": 0.1}}
    assert compared("train", config) == {"stage": "quality", "optimizer.lr": "0.1"}
    assert compared("other", config) == {"stage": "quality", "optimizer.lr": "0.1"}
