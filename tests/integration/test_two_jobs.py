"""Several jobs on one dataset at the same time, as real processes: they converge, and no version is a mixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import verify
from tests import toy_work
from tests.toy_work import NAME, ROWS, UNITS

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 8


def race(folder: Path, options: Sequence[dict[str, Any]], rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return the digests that the processes came to, by round."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.toy_work", str(folder), str(number), str(len(options)), str(rounds)),
                json.dumps(option),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "platform:."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, option in enumerate(options)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(options), outputs
    return list(zip(*(out.split() for out, _ in outputs), strict=True))


def whole(lake: Path, digest: str, settings: dict[str, Any]) -> None:
    """Check that a version is complete, undamaged, and made by one process only."""
    check = verify(Lake(str(lake)).dataset(NAME), digest)
    assert check.damages == () and check.version is not None
    version = check.version
    assert version.manifest.config == settings
    assert (version.rows, version.manifest.rejects_by_reason) == (UNITS * ROWS, {"bad": UNITS})
    rows = version.read()
    assert rows["sample_id"].to_pylist() == [unit * 100 + row for unit in range(UNITS) for row in range(ROWS)]
    assert all(str(settings).encode() in word for word in rows["embedding"].to_pylist())
    assert not list(lake.rglob(".tmp-*"))


@pytest.mark.parametrize("own", [False, True], ids=["deterministic", "own-bytes"])
def test_three_jobs_of_one_config_make_one_version(tmp_path: Path, own: bool) -> None:
    """Even where each would have made other bytes (the web changes): the first record of a unit counts for all."""
    settings = {"x": 1}
    digests = race(tmp_path, [{"settings": settings, "own": own}] * 3)
    for turn, found in enumerate(digests):
        lake = tmp_path / f"lake-{turn}"
        assert len(set(found)) == 1
        assert Lake(str(lake)).dataset(NAME).digests() == [found[0]]
        whole(lake, found[0], settings)


def test_two_configs_make_two_versions_and_one_is_the_head(tmp_path: Path) -> None:
    both = [{"x": 1}, {"x": 2}]
    digests = race(tmp_path, [{"settings": settings, "own": False} for settings in both])
    for turn, found in enumerate(digests):
        lake = tmp_path / f"lake-{turn}"
        dataset = Lake(str(lake)).dataset(NAME)
        assert sorted(dataset.digests()) == sorted(set(found)) and len(set(found)) == 2
        head = dataset.head()
        assert head is not None and head.ref.digest in found
        for digest, settings in zip(found, both, strict=True):
            whole(lake, digest, settings)


def test_jobs_that_remake_one_lost_shard_together_converge(tmp_path: Path) -> None:
    settings = {"x": 1}
    wanted = set()
    for turn in range(ROUNDS):
        lake = tmp_path / f"lake-{turn}"
        wanted.add(toy_work.run(str(lake), settings))
        Path(Lake(str(lake)).version(NAME).shard_uri(turn % UNITS)).unlink()
    assert len(wanted) == 1
    digests = race(tmp_path, [{"settings": settings, "own": False}] * 3)
    for turn, found in enumerate(digests):
        assert set(found) == wanted
        whole(tmp_path / f"lake-{turn}", found[0], settings)
