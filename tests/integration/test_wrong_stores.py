"""Storage without credentials, and MLflow databases of other versions: what is wrong, and a remedy that works."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from tests.integration.test_mlflow import template
from tests.lineage_lake import SmallLake

__all__ = ["template"]
OLDER = "5b0e9adcef9c"
"""A schema of MLflow 2."""


@pytest.mark.parametrize(
    "use",
    [
        lambda uri: graphs.scan(uri),
        lambda uri: Lake(uri).names(),
        lambda uri: Lake(uri).dataset("links").digests(),
        lambda uri: files.read_bytes(f"{uri}/x"),
        lambda uri: files.read_many([f"{uri}/x", f"{uri}/y"]),
        lambda uri: files.write_atomic(f"{uri}/x", b""),
    ],
)
def test_s3_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: Callable[[str], object]) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found = []
    try:
        found = [error for error in use("s3://bucket/lake") or () if isinstance(error, AltDiffusionError)]  # type: ignore[attr-defined]
    except AltDiffusionError as error:
        found = [error]
    assert found
    for error in found:
        assert "redentials" in str(error) and "AWS_ACCESS_KEY_ID" in error.remedy, error


def with_schema(small: SmallLake, template: Path, revision: str) -> Path:
    database = Path(small.uri, "mlflow.db")
    shutil.copy(template, database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()
    return database


@pytest.mark.parametrize(("revision", "word"), [(OLDER, "older"), ("ffffffffffff", "newer")])
def test_a_database_of_another_version_is_refused_before_any_work(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str], revision: str, word: str
) -> None:
    small = SmallLake(tmp_path / "lake")
    database = with_schema(small, template, revision)
    for start in (
        lambda: rebuild(small.uri),
        lambda: JobRun.open(job="train", name="r", fingerprint="f" * 64, config={}, lake=small.lake),
    ):
        with pytest.raises(AltDiffusionError, match=f"MLflow {word} than the installed 3") as caught:
            start()
        if word == "older":
            assert f"mlflow db upgrade 'sqlite:///{database}'" in caught.value.remedy
        else:
            assert "use a version newer than mlflow 3" in caught.value.remedy
    assert not Path(small.uri, "tracking").exists()
    assert main(["lineage", "rebuild", "--lake", small.uri]) == 2
    assert word in capsys.readouterr().err
    if word == "newer":  # the second remedy works
        other = f"sqlite:///{tmp_path}/other.db"
        shutil.copy(template, tmp_path / "other.db")
        assert main(["lineage", "rebuild", "--lake", small.uri, "--tracking-uri", other]) == 0


@pytest.mark.slow
def test_a_database_of_an_older_mlflow_is_upgraded_by_mlflow_itself(tmp_path: Path) -> None:
    """It lacks tables, and then MLflow brings it up to date when it opens it; no experiment is lost."""
    small = SmallLake(tmp_path / "lake")
    import mlflow
    from alembic import command
    from alembic.config import Config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    database = f"sqlite:///{small.uri}/mlflow.db"
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    config.set_main_option("sqlalchemy.url", database)
    Base.metadata.create_all(create_engine(database))
    command.upgrade(config, OLDER)
    with closing(sqlite3.connect(f"{small.uri}/mlflow.db")) as connection:
        connection.execute("INSERT INTO experiments (name, lifecycle_stage) VALUES ('a', 'active'), ('b', 'active')")
        connection.commit()
    assert rebuild(small.uri).versions == 5
    with closing(sqlite3.connect(f"{small.uri}/mlflow.db")) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM experiments")}
    assert {"a", "b"} < names
