"""A tracking server that hangs, refuses access or fails: the job goes on, ends soon, and states what waits and how to
ship it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import job_run, tracking
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox
from altdiffusion.lineage.starts import Start
from tests.lineage_lake import SmallLake
from tests.wrong_server import WrongServer, wrong_server

LIMIT_S = 4.0


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tracking._LATER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(job_run, "CLOSE_TIMEOUT_S", LIMIT_S)


def opened(server: WrongServer, small: SmallLake) -> JobRun:
    """Return the run of a job whose server became wrong after its start."""
    from mlflow import MlflowClient

    place = tracking.Tracking(uri=server.uri, client=MlflowClient(server.uri), experiment_id="1")
    folder = Path(small.uri, "tracking", "train-quality-ffff")
    folder.mkdir(parents=True)
    start = Start(job="train", name="r", fingerprint="0" * 64, time_ms=0, facts={}, outputs=[])
    return JobRun(place, "0" * 32, small.uri, str(folder), start)


@pytest.mark.parametrize(("status", "most"), [(0, 12), (401, 10), (403, 10), (500, 16)])
def test_the_job_goes_on_and_ends_in_time(
    status: int, most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = SmallLake(tmp_path / "lake")
    with wrong_server(status) as server:
        run = opened(server, small)
        outbox = MetricOutbox(run.metrics_path)
        run.ship(outbox.path)
        slowest = 0.0
        for step in range(500):
            start = time.perf_counter()
            outbox.append(step=step, metrics={"loss": 1.0, "lr": 0.5})
            slowest = max(slowest, time.perf_counter() - start)
            time.sleep(0.002)
        if status in (401, 403):  # left alone after a few tries, long before the job ends
            end = time.monotonic() + 60
            while not run._shipper.denied:
                assert time.monotonic() < end
                time.sleep(0.05)
            tried = server.requests
        start = time.monotonic()
        assert not run.close()
        assert time.monotonic() - start < 3 * LIMIT_S and slowest < LIMIT_S
        assert 1 <= server.requests <= most
        if status in (401, 403):
            assert server.requests == tried
    text = caplog.text
    assert "1 records and 1,000 metric points wait in" in text
    assert f"altdiffusion lineage flush --lake {small.uri} --tracking-uri '{server.uri}'" in text
    assert ("MLFLOW_TRACKING_USERNAME" in text) == (status in (401, 403))
    assert len([one for one in caplog.records if "waits:" in one.message]) <= 2


@pytest.mark.parametrize(("status", "words"), [(0, "cannot be reached"), (401, "MLFLOW_TRACKING_PASSWORD")])
def test_a_job_does_not_start_with_such_a_server(
    status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PROBE_TIMEOUT_S", 0.3)
    start = time.monotonic()
    with wrong_server(status) as server, pytest.raises(AltDiffusionError, match=words):
        tracking.connect(server.uri, str(tmp_path))
    assert time.monotonic() - start < 30
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
