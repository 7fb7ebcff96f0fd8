"""`altdiffusion ui`: a real server on loopback, opened, read and ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from altdiffusion.cli import main
from tests.integration.test_mlflow import record, template, train
from tests.lineage_lake import SmallLake
from tests.signals import take_sigint

__all__ = ["template"]


@pytest.fixture
def small(tmp_path: Path, template: Path) -> SmallLake:
    small = SmallLake(tmp_path / "lake")
    Path(small.uri, "mlflow.db").write_bytes(template.read_bytes())
    return small


def members(group: int) -> list[str]:
    """Return the processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_server_shows_the_newest_run_and_leaves_no_process(small: SmallLake) -> None:
    with train(small) as run:
        record(small, run)
    command = [sys.executable, "-m", "altdiffusion.cli", "ui", "--lake", small.uri]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=take_sigint
    ) as process:
        assert process.stdout is not None
        lines = []
        while not (line := process.stdout.readline()).startswith("Ctrl-C"):
            assert line, lines
            lines.append(line.strip())
        addresses = [line for line in lines if line.startswith("http://127.0.0.1:")]
        assert all(address.endswith("?workflowType=machine_learning") for address in addresses)
        assert run.run_id in addresses[0] and lines[0] == "newest run, train/quality:"
        server = addresses[0].partition("/#/")[0]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (group,) = (int(child) for child in children)
        assert 1 <= len(members(group)) <= 4
        with urllib.request.urlopen(addresses[0].partition("#")[0], timeout=60) as page:
            assert page.status == 200 and b"<html" in page.read()
        other = urllib.request.Request(f"{server}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):  # a page of the web whose name leads here
            urllib.request.urlopen(other, timeout=60)
        query = urllib.parse.urlencode({"path": "lineage.html", "run_uuid": run.run_id})
        with urllib.request.urlopen(f"{server}/get-artifact?{query}", timeout=60) as artifact:
            assert "Lineage of checkpoint quality" in artifact.read().decode()
        for path, headers, status in (
            (f"get-artifact?path=../../../../etc/passwd&run_uuid={run.run_id}", {}, 400),
            ("", {"Host": "evil.example"}, 403),
            ("api/2.0/mlflow/experiments/search", {"Origin": "http://evil.example"}, 403),
        ):
            data = b"{}" if "search" in path else None
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(f"{server}/{path}", data, headers), timeout=60)
            assert refused.value.code == status, path
        port = server.rpartition(":")[2]
        again = subprocess.run([*command, "--port", port], env=environment, capture_output=True, text=True, check=False)
        assert again.returncode == 2 and f"port {port}" in again.stderr and "--port" in again.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert members(group) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def test_a_store_that_cannot_be_opened_is_refused_before_a_server_starts(
    small: SmallLake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start = time.monotonic()
    assert main(["ui", "--lake", "s3://bucket/lake"]) == 2
    assert "tracking.uri" in capsys.readouterr().err
    assert main(["ui", "--lake", str(tmp_path)]) == 2
    assert re.search(r"no job has logged.*lineage rebuild", capsys.readouterr().err, re.DOTALL)
    with closing(sqlite3.connect(f"{small.uri}/mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert main(["ui", "--lake", small.uri]) == 2
    assert "newer than the installed" in capsys.readouterr().err
    assert time.monotonic() - start < 60
