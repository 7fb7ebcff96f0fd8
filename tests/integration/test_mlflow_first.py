"""The first contact with a lake's MLflow database: several jobs at once, one that was killed, forged journals."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import database
from altdiffusion.lineage.job_folder import tracking_folder
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.lineage.tracking import connect
from tests.lineage_lake import DRAWN, SmallLake

ROOT = Path(__file__).resolve().parents[2]
SECRET = "PRIVATE KEY that no artifact may hold"
START = """
import sys, time
from altdiffusion.lineage.tracking import connect
import mlflow, sqlalchemy, alembic.command  # what takes time comes before the race
print("ready", flush=True); sys.stdin.readline()
tracking = connect(None, sys.argv[1])
print(tracking.experiment_id, tracking.client.create_run(tracking.experiment_id).info.run_id, flush=True)
"""


def test_jobs_that_start_at_once_on_a_new_lake_share_one_database(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": "platform:."}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(tmp_path / "lake")],
            cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    outputs = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], outputs
    assert len({out.split()[0] for out, _ in outputs}) == 1 and len({out.split()[1] for out, _ in outputs}) == 3
    assert not list(tmp_path.rglob("*unfinished*"))


def test_a_database_whose_making_was_interrupted_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from alembic import command
    from alembic.config import Config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    path = tmp_path / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = Config()
    config.set_main_option("script_location", "mlflow:store/db_migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "+7")
    engine.dispose()
    connect(None, str(tmp_path))
    assert "is unfinished" in caplog.text
    with closing(sqlite3.connect(f"{path}.unfinished-1")) as aside:
        assert aside.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    connect(None, str(tmp_path))  # and now it is as it must be
    assert len(list(tmp_path.glob("*.unfinished-*"))) == 1


def test_a_database_with_runs_is_never_set_aside(tmp_path: Path) -> None:
    tracking = connect(None, str(tmp_path))
    tracking.client.create_run(tracking.experiment_id)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as store:
        store.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    script = "import sys; from altdiffusion.lineage.tracking import connect; connect(None, sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "platform:."}, capture_output=True, text=True,
    )  # fmt: skip
    assert "mlflow db upgrade" in done.stderr and not list(tmp_path.glob("*.unfinished-*"))


def test_a_database_that_fails_meanwhile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = SmallLake(tmp_path / "lake")
    connect(None, small.uri)
    with closing(sqlite3.connect(tmp_path / "lake/mlflow.db", isolation_level=None)) as store:
        store.execute("ALTER TABLE tags RENAME TO lost")
    assert main(["lineage", "rebuild", "--lake", small.uri]) == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("mlflow.db", "no such table", "lineage rebuild"))
    assert "Traceback" not in printed


def test_a_wait_for_the_lock_is_reported(tmp_path: Path) -> None:
    with database.first_contact(str(tmp_path / "mlflow.db")):
        with pytest.raises(AltDiffusionError, match="held by another process"):
            with database.first_contact(str(tmp_path / "mlflow.db"), timeout_s=0.3):
                pass


@pytest.mark.parametrize(
    "name",
    [
        "{victim}/.ssh/id_key", "../../../victim/.ssh/id_key", "files/../../../../victim/.ssh/id_key", "files", ".",
        "files/1/id_key/../../../job.json", "job.json", "files/link.img", "files/folder", "files/linked/id_key", "", 7,
        None, "files/a/b/c", "\0",
    ],
)  # fmt: skip
def test_a_forged_line_cannot_name_a_foreign_file(tmp_path: Path, name: object) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "lake/tracking/x"
    (victim / ".ssh").mkdir(parents=True)
    (victim / ".ssh/id_key").write_text(SECRET)
    (folder / "files/folder/inner").mkdir(parents=True)
    (folder / "files/folder/inner/key").symlink_to(victim / ".ssh/id_key")
    (folder / "files/link.img").symlink_to(victim / ".ssh/id_key")
    (folder / "files/linked").symlink_to(victim / ".ssh")
    with pytest.raises(AltDiffusionError):
        Kept(str(folder)).find(name.format(victim=victim) if isinstance(name, str) else name)


def test_a_copy_that_was_kept_is_found(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path))
    (tmp_path / "page.html").write_text("page")
    first, second = kept.keep(b"picture"), kept.keep_copy(str(tmp_path / "page.html"))
    path = kept.find(second)
    assert path is not None and Path(path).read_text() == "page"
    assert kept.find(str(tmp_path / second)) == path  # as earlier versions wrote it
    assert kept.find(first) is not None and kept.keep(b"picture") == first
    (tmp_path / first).unlink()
    assert kept.find(first) is None


def test_rebuild_takes_nothing_from_outside_the_lake_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = SmallLake(tmp_path / "lake")
    victim = tmp_path / "victim"
    (victim / ".ssh").mkdir(parents=True)
    (victim / ".ssh/id_key").write_text(SECRET)
    folder = tmp_path / "lake/tracking/x"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"job": "train", "name": "x", "fingerprint": "0" * 64}))
    image = Kept(str(folder)).keep(DRAWN["en"])
    lines = [
        {"op": "artifact", "file": str(victim / ".ssh/id_key"), "path": None},
        {"op": "artifact", "file": "../../../victim/.ssh", "path": "../../x"},
        {"op": "image", "file": str(victim / ".ssh/id_key"), "key": "a", "step": 1, "time_ms": 1},
        {"op": "checkpoint", "ref": f"checkpoint:../../../victim/.ssh@{'0' * 64}", "step": 1, "time_ms": 1},
        {"op": "checkpoint", "folder": str(victim), "step": 1}, {"op": "input", "ref": 7}, {"op": ["x"]},
        {"op": "status", "status": "NOT_A_STATUS", "time_ms": 10**30}, {"op": "output", "ref": "dataset:../x@00000000"},
        {"op": "image", "file": image, "key": "samples/en", "step": 2, "time_ms": 5},
    ]  # fmt: skip
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"a": ' + "9" * 5000)
    metrics = [
        {"step": 1, "time_ms": 1, "metrics": {"loss": 0.5}}, {"step": "1", "time_ms": 1, "metrics": {"loss": 2}},
        {"step": 10**30, "time_ms": 1, "metrics": {"loss": 1}}, {"step": 2, "time_ms": 2, "metrics": {"loss": 10**400}},
        {"step": 3, "time_ms": [], "metrics": 7},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    rebuilt = rebuild(small.uri, manifests=True)
    assert rebuilt.journals == 1 and rebuilt.versions > 0 and "is skipped" in caplog.text
    assert (victim / ".ssh/id_key").read_text() == SECRET
    held = [path for path in (tmp_path / "lake").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not held
    tracking = connect(None, small.uri)
    (run,) = tracking.client.search_runs([tracking.experiment_id], "tags.altdiffusion.name = 'x'")
    assert [point.value for point in tracking.client.get_metric_history(run.info.run_id, "loss")] == [0.5]
    assert any("samples~en" in item.path for item in tracking.client.list_artifacts(run.info.run_id, "images"))


def test_the_journal_of_a_remote_lake_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with JobRun.open(
        job="train", name="r", fingerprint="0" * 64, config={}, lake="memory://remote-journal",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    ) as run:  # fmt: skip
        assert Path(run.folder).is_relative_to(tmp_path / "state/altdiffusion")
        assert (tmp_path / "state/altdiffusion").stat().st_mode & 0o777 == 0o700
    (tmp_path / "state/altdiffusion").chmod(0o755)
    with pytest.raises(AltDiffusionError, match="chmod 700"):
        tracking_folder("memory://remote-journal", "train", "r", "0" * 64)
