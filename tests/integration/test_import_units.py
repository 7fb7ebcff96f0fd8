"""An import on Ray, and one that is killed with SIGKILL at random moments: the digest of an undisturbed one."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion import cli
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import damages_of
from jobs.harness import main
from tests.download_lake import image
from tests.killed import killed
from tests.ray_folder import embedded_ray

UNITS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of tar files of three images each, one of which has no caption."""
    folder = tmp_path_factory.mktemp("tars")
    for number in range(UNITS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for place in range(3):
                parts = {"jpg": image(number * 3 + place, format="JPEG"), "txt": f"рудий кіт {number} {place}".encode()}
                for kind, body in parts.items():
                    if kind == "txt" and place == 2 and number == 5:
                        continue
                    info = tarfile.TarInfo(f"{place}.{kind}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    return folder


def line(source: Path, lake: Path) -> list[str]:
    return ["import", str(source), "--dataset", "own", "--lake", str(lake), "--language", "uk"]


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of an import in one process, without a break."""
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    assert cli.main(line(source, lake)) == 0
    version = Lake(str(lake)).version("own")
    assert version.rows == UNITS * 3 - 1 and dict(version.manifest.rejects_by_reason) == {"no_caption": 1}
    return version.ref.digest


def test_an_import_that_is_killed_makes_what_an_undisturbed_one_makes(
    source: Path, undisturbed: str, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "altdiffusion.cli", *line(source, lake)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    assert killed(start, lake, kills=3, seed=4, most_files=8) >= 2
    recorded = len(list(lake.rglob("*")))
    assert recorded and cli.main(line(source, lake)) == 0
    version = Lake(str(lake)).version("own")
    assert version.ref.digest == undisturbed and not damages_of(version)


def test_an_import_on_ray_makes_what_one_process_makes(
    source: Path, undisturbed: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "import.yaml"
    settings = {
        "lake": str(tmp_path / "lake"), "dataset": "own", "execution": {"backend": "ray"},
        "images": {"uri": str(source), "language": "uk"}, "workers": {"min": 1, "max": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    with embedded_ray():
        assert main(importlib.import_module("jobs.import").JOB, ["--config", str(path)]) == 0, capsys.readouterr().err
    assert Lake(str(tmp_path / "lake")).version("own").ref.digest == undisturbed
