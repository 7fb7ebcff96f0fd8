"""MLflow for several people as deploy/mlflow/serve.sh serves it: PostgreSQL, artifacts on S3, and basic auth.

PostgreSQL is Debian's (`apt install postgresql`), and what MLflow needs for it is `pip install psycopg2-binary boto3
Flask-WTF`; where either is missing, the test is skipped. The S3 server is that of the benchmarks.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.outbox import MetricOutbox
from tests.lineage_lake import DRAWN, SmallLake
from tests.mlflow_server import Server
from tests.ports import free_port

INITDB = shutil.which("initdb", path=os.environ["PATH"] + ":/usr/lib/postgresql/17/bin:/usr/lib/postgresql/15/bin")
PASSWORD = secrets.token_hex(12)


class TeamServer(Server):
    """MLflow on PostgreSQL with artifacts on S3, for users with passwords."""

    def __init__(self, folder: Path, database: dict[str, str], s3: str) -> None:
        super().__init__(folder)
        self.environment = {
            **database, "MLFLOW_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
            "MLFLOW_PORT": str(self.port), "MLFLOW_HOSTS": f"127.0.0.1:{self.port}",
            "MLFLOW_ARTIFACTS": "s3://bucket/mlflow", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_S3_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def command(self) -> list[str]:
        return ["sh", str(Path(__file__).resolve().parents[2] / "deploy/mlflow/serve.sh")]

    def ask(self, path: str, user: str | None, body: dict[str, Any] | None = None, password: str = PASSWORD) -> Any:
        """Make a REST call as a user, or as none."""
        headers = {"Content-Type": "application/json"}
        if user is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def as_user(command: list[str]) -> list[str]:
    """Return a command as PostgreSQL runs it: never as root."""
    return ["setpriv", "--reuid=nobody", "--clear-groups", *command] if os.getuid() == 0 else command


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment with which clients find a PostgreSQL that has the database `mlflow`."""
    if INITDB is None:
        pytest.skip("PostgreSQL's initdb is not installed (apt install postgresql)")
    programs, port = Path(INITDB).resolve().parent, free_port()
    folder = Path("/tmp") / f"pg-{secrets.token_hex(6)}"  # its socket's path has at most 107 bytes
    folder.mkdir()
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    try:
        if os.getuid() == 0:
            for path in (folder, secret):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        data = str(folder / "data")
        made = [str(programs / "initdb"), "-D", data, "-U", "mlflow", f"--pwfile={secret}", "-A", "scram-sha-256"]
        subprocess.run(as_user(made), check=True, capture_output=True, cwd=folder)
        control = [str(programs / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log")]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        subprocess.run(as_user([*control, "-o", options, "start"]), check=True, capture_output=True, cwd=folder)
        try:
            access = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
            found = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGPASSWORD": PASSWORD}
            command = [str(programs / "createdb"), *access, "mlflow"]
            subprocess.run(command, check=True, capture_output=True, cwd=folder, env=os.environ | found)
            yield found
        finally:
            subprocess.run(as_user([*control, "-m", "immediate", "stop"]), check=True, capture_output=True, cwd=folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an S3 server with one bucket, and the bucket's folder."""
    bucket, port = tmp_path / "s3" / "bucket", free_port()
    bucket.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.s3_server", "--root", str(bucket.parent), "--port", str(port)]
    server = subprocess.Popen([*command, "--delay-ms", "0"], cwd=Path(__file__).resolve().parents[2])
    yield f"http://127.0.0.1:{port}", bucket
    server.terminate()
    server.wait()


@pytest.mark.timeout(300)
def test_a_job_logs_to_a_team_server(
    tmp_path: Path, database: dict[str, str], s3: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs, metrics, images and artifacts are in PostgreSQL and on S3; without a password nothing is given away."""
    server = TeamServer(tmp_path, database, s3[0])
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        small = SmallLake(tmp_path / "lake")
        with JobRun.open(
            job="train", name="quality", fingerprint="f" * 64, config={"steps": 3}, lake=small.uri,
            tracking_uri=server.uri,
        ) as run:  # fmt: skip
            run.input(small.latents)
            outbox = MetricOutbox(run.metrics_path)
            run.ship(outbox.path)
            for step in range(3):
                outbox.append(step=step, metrics={"loss": float(step)})
            run.checkpoint(small.quality, step=100, metrics={"loss": 0.25})
            run.image("samples/de", DRAWN["de"], step=100)
            run.artifact(__file__, "code")
        found = server.ask(f"runs/get?run_id={run.run_id}", "admin")["run"]
        assert found["info"]["status"] == "FINISHED"
        points = server.ask(f"metrics/get-history?run_id={run.run_id}&metric_key=loss", "admin")["metrics"]
        assert sorted(point["value"] for point in points) == [0.0, 1.0, 2.0]
        (kept,) = s3[1].rglob(Path(__file__).name)
        assert kept.read_bytes() == Path(__file__).read_bytes()
        assert [path for path in s3[1].rglob("samples~de+step+100+*") if path.stat().st_size]
        fetched = run.tracking.client.download_artifacts(run.run_id, f"code/{Path(__file__).name}", str(tmp_path))
        assert Path(fetched).read_bytes() == Path(__file__).read_bytes()
        for user, password in ((None, ""), ("nobody", PASSWORD), ("admin", "password"), ("admin", "password1234")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                server.ask(f"runs/get?run_id={run.run_id}", user, password=password)
            assert refused.value.code == 401
        request = urllib.request.Request(
            f"{server.uri}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.com"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 403
        listed = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
        assert PASSWORD not in listed
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(AltDiffusionError, match="MLFLOW_TRACKING_PASSWORD"):
            JobRun.open(
                job="train", name="other", fingerprint="e" * 64, config={}, lake=small.uri, tracking_uri=server.uri
            )
    finally:
        server.kill()
