"""A real MLflow server, killed and started again in the middle of a job: no point is lost or doubled."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox
from tests.lineage_lake import DRAWN, SmallLake
from tests.mlflow_server import Server

POINTS = 400


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
