"""What the tests of training share: one lake, made once, copied where a test writes to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import training_lake


@pytest.fixture(scope="session")
def pristine_lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a lake with a base model and latents; no test writes to it."""
    return training_lake.make_lake(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def lake(pristine_lake: str, tmp_path: Path) -> str:
    """Return a copy of the lake."""
    return str(shutil.copytree(pristine_lake, tmp_path / "lake"))
