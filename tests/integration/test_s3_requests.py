"""What lineage commands ask of an S3 server: one request per file, and none to learn whether or how large it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
VERSIONS, CHECKPOINTS = 6, 20
SIZES = ["--versions", str(VERSIONS), "--checkpoints", str(CHECKPOINTS)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a lake in the bucket `lake`."""
    make = [sys.executable, "-m", "benchmarks.lineage", "--make", "--lake", str(tmp_path / "lake"), *SIZES]
    subprocess.run(make, cwd=ROOT, env=environment(), check=True)
    port = free_port()
    serve = [sys.executable, "-m", "benchmarks.s3_server", "--root", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen([*serve, "--delay-ms", "0"], cwd=ROOT, env=environment())
    uri = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{uri}/lake?list-type=2&max-keys=1").close()
            break
        except OSError:
            time.sleep(0.2)
    yield uri
    server.terminate()
    server.wait()


@pytest.mark.timeout(120)
def test_every_file_is_one_request(tmp_path: Path, endpoint: str) -> None:
    counts, listed = tmp_path / "counts.json", tmp_path / "list"
    listed.write_text("url:http://pictures.example/3.png\n")
    access = environment(
        AWS_ACCESS_KEY_ID="tests", AWS_SECRET_ACCESS_KEY="tests", AWS_ENDPOINT_URL=endpoint,
        AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip

    def asked(*command: str) -> dict[str, int]:
        call = [sys.executable, "-m", "benchmarks.storage_calls", "s3://lake", str(counts), "altdiffusion.cli"]
        done = subprocess.run(
            [*call, *command, "--lake", "s3://lake"], cwd=ROOT, env=access, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return json.loads(counts.read_text())  # type: ignore[no-any-return]

    up = asked("lineage", "up", "run-0000")
    assert up["read"] <= VERSIONS + CHECKPOINTS + 8 and up["exists"] <= 8 and up["list"] <= 30
    impact = asked("lineage", "impact", "--hashes", str(listed))
    per_version = 3  # manifest, table of shards, shard
    per_checkpoint = 3  # COMPLETE.json for the graph and for its draws, state.json
    assert impact["read"] <= per_version * VERSIONS + VERSIONS + per_checkpoint * CHECKPOINTS + 16
    assert impact["exists"] <= 8 and impact["list"] <= 60
