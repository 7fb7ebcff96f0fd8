"""A Ray cluster of three nodes under SIGKILL of workers, nodes and the job: one digest, nothing twice, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.download.download_work import plan_download
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import damages_of
from demo import server, site
from tests.chaos.ray_cluster import records
from tests.e2e.conftest import ROOT, Workspace, digests, prepared
from tests.ray_folder import ray_folder

__all__ = ["prepared"]  # a fixture of the end-to-end tests

ROWS_PER_UNIT = 40
WORKERS = 2
CLOCK_S = 0.05
"""Seconds that a file's time may be behind the clock of the process."""


@pytest.fixture
def requests(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, list[tuple[float, str]]]]:
    """Yield the demo's image server with a log of (time, host + path)."""
    log: list[tuple[float, str]] = []
    answer = site.answer

    def logged(host: str, path: str, cache: Path) -> Any:
        log.append((time.time(), host + path))
        return answer(host, path, cache)

    monkeypatch.setattr(site, "answer", logged)
    with server.running(prepared.path / ".demo/cache") as port:
        yield port, log


def curate(workspace: Workspace, *command: str, port: int, **env: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", *command, "--config", "jobs/configs/demo/curate.yaml"),
            f"download.connect_to={json.dumps(site.connect_to(port))}",
            f"download.rows_per_unit={ROWS_PER_UNIT}",
        ],
        cwd=workspace.path,
        env={**os.environ, **workspace.env, **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def check_downloads(lake: Path, log: list[tuple[float, str]], kills: int) -> None:
    """Check that no row was asked for after its unit's record, and twice only what was in flight at a kill."""
    links = Lake(str(lake)).version("links")
    images = Lake(str(lake)).version("images")
    first = images
    while first.manifest.parent_refs[0].name == "images":
        first = Lake(str(lake)).version(first.manifest.parent_refs[0])
    ledger = lake / "datasets/images/ledger" / first.manifest.fingerprint
    asked: dict[str, list[float]] = {}
    for moment, address in log:
        asked.setdefault(address, []).append(moment)
    for unit in plan_download(links, ROWS_PER_UNIT):
        recorded = (ledger / f"{unit.id}.json").stat().st_mtime
        start, stop = unit.payload["start"], unit.payload["stop"]
        for url in links.read_shard(unit.payload["shard"], ["url"])["url"].to_pylist()[start:stop]:
            late = [moment for moment in asked.get(url.partition("://")[2], []) if moment > recorded + CLOCK_S]
            assert not late, f"{url} was asked for {late[0] - recorded:.2f} s after {unit.id} was recorded"
    known = {url.partition("://")[2] for url in links.read(["url"])["url"].to_pylist()}
    again = sum(len(moments) - 1 for address, moments in asked.items() if address in known)
    assert again <= kills * WORKERS * ROWS_PER_UNIT, f"{again} rows were asked for again after {kills} kills"


def check_rows(lake: Path) -> None:
    """Check that every link is an image or a reject, once."""
    links, images = Lake(str(lake)).version("links"), Lake(str(lake)).version("images")
    wanted = Counter(links.read(["sample_id"])["sample_id"].to_pylist())
    found = Counter(images.read(["sample_id"])["sample_id"].to_pylist())
    for table in images.iter_rejects():
        found.update(table["sample_id"].to_pylist())
    assert found == wanted and max(wanted.values()) == 1
    assert damages_of(images) == []


def test_kills_on_three_nodes_leave_the_digest_as_it_is(
    prepared: Workspace, requests: tuple[int, list[tuple[float, str]]], tmp_path: Path, seed: int = 1
) -> None:
    port, log = requests
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    curate(prepared, "jobs.curate", "execution.backend=inline", f"lake={undisturbed}", port=port)
    log.clear()
    with ray_folder() as folder:
        chaos = ["--seed", str(seed), "--units", str(records(undisturbed)), "--lake", str(disturbed)]
        env = {"RAY_TMPDIR": folder, "PYTHONPATH": f"platform:.:{ROOT}"}
        output = curate(prepared, "tests.chaos.ray_cluster", *chaos, port=port, **env)
    killed = json.loads(output.splitlines()[-1])["killed"]
    print(f"note: {killed}")
    assert len(killed) >= 3, f"only {killed} was killed before the job ended"
    assert digests(disturbed) == digests(undisturbed)
    check_rows(disturbed)
    check_downloads(disturbed, log, len(killed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 21))
def test_nineteen_more_seeds(
    prepared: Workspace, requests: tuple[int, list[tuple[float, str]]], tmp_path: Path, seed: int
) -> None:
    test_kills_on_three_nodes_leave_the_digest_as_it_is(prepared, requests, tmp_path, seed)
