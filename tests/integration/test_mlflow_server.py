"""A real MLflow server, killed and started again in the middle of a job: no point is lost or doubled."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox
from tests.lineage_lake import DRAWN, SmallLake
from tests.ports import free_port

POINTS = 400


class Server:
    """`mlflow server` on loopback over a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Make a REST call, as a browser does."""
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/{path}", timeout=20) as answer:
            return json.load(answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_every_point_once_through_a_killed_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the way with a password, which is in nothing that the job has written or printed afterwards."""
    password = secrets.token_hex(12)
    monkeypatch.setenv("OF_BOB", password)
    small = SmallLake(tmp_path / "lake")
    slowest = 0.0
    with JobRun.open(
        job="train",
        name="quality",
        fingerprint="f" * 64,
        config={"stage": "quality", "steps": POINTS},
        lake=small.uri,
        tracking_uri=server.uri.replace("http://", "http://bob:${env:OF_BOB}@"),
    ) as run:
        run.input(small.latents)
        outbox = MetricOutbox(run.metrics_path)
        run.ship(outbox.path)
        for step in range(POINTS):
            start = time.perf_counter()
            if step == POINTS // 4:
                time.sleep(1.5)  # some of it is shipped by now, some is on its way
                start = time.perf_counter()
                server.kill()
            outbox.append(step=step, metrics={"loss": float(step)})
            if step == POINTS // 2:  # in the middle of the outage
                run.checkpoint(small.quality, step=100, metrics={"loss": 0.25})
                run.image("samples/_all", DRAWN["en"], step=100)
                run.artifact(str(Path(__file__)), "code")
            slowest = max(slowest, time.perf_counter() - start)
            if step == 3 * POINTS // 4:
                server.start()
            time.sleep(0.002)
    assert slowest < 20, "logging blocked the job"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 30 and not [path for path in files if password.encode() in path.read_bytes()]
    assert password not in caplog.text + run.url + run.tracking.command

    found = server.post(
        "runs/search",
        {"experiment_ids": [run.tracking.experiment_id], "filter": "attributes.run_name = 'train/quality'"},
    )
    (seen,) = found["runs"]
    assert seen["info"]["status"] == "FINISHED"
    history = server.get(f"metrics/get-history?run_id={run.run_id}&metric_key=loss&max_results=10000")["metrics"]
    assert sorted((int(point.get("step", 0)), point["value"]) for point in history) == [
        (step, float(step)) for step in range(POINTS)
    ]
    written = [json.loads(line) for line in Path(run.metrics_path).read_text().splitlines()]
    assert {int(point.get("step", 0)): point["timestamp"] for point in history} == {
        line["step"]: line["time_ms"] for line in written
    }
    (given,) = seen["inputs"]["dataset_inputs"]
    assert given["dataset"]["digest"] == small.latents.ref.digest[:32]
    (output,) = seen["outputs"]["model_outputs"]
    models = server.post("logged-models/search", {"experiment_ids": [run.tracking.experiment_id]})["models"]
    (model,) = [one for one in models if one["info"]["model_id"] == output["model_id"]]
    tags = {tag["key"]: tag["value"] for tag in model["info"]["tags"]}
    assert tags["lineage.ref"] == str(small.quality) and tags[f"lineage.ds.{small.links.ref.digest[:32]}"] == "links"
    assert model["data"]["metrics"][0]["dataset_name"] == "latents"
    images = server.get(f"artifacts/list?run_id={run.run_id}&path=images")["files"]
    assert len(images) == 2 and all("samples~_all+step+100+" in image["path"] for image in images)
    assert (
        server.get(f"artifacts/list?run_id={run.run_id}&path=code")["files"][0]["path"] == f"code/{Path(__file__).name}"
    )
