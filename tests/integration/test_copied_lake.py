"""A lake that was copied or moved is whole: nothing in it needs, or writes to, the place where it was."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import files
from altdiffusion.training.run.record import read_record
from tests.integration.test_mlflow import record, template, train
from tests.lineage_lake import SmallLake

__all__ = ["template"]


def tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def original(tmp_path: Path, template: Path) -> SmallLake:
    small = SmallLake(tmp_path / "lake")
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    with train(small) as run:
        record(small, run)
    return small


def copy(small: SmallLake, place: Path) -> str:
    subprocess.run(["cp", "-r", small.uri, str(place)], check=True)
    return str(place)


def test_a_rebuild_of_a_copy_writes_into_the_copy_only(original: SmallLake, tmp_path: Path) -> None:
    before = tree(Path(original.uri))
    lake = copy(original, tmp_path / "copy")
    rebuild(lake)
    with JobRun.open(job="curate", name="more", fingerprint="f" * 64, config={}, lake=lake) as run:
        run.image("sheet", Path(lake, "mlartifacts").rglob("*.png").__next__(), step=1)
    assert tree(Path(original.uri)) == before
    assert list(Path(lake, "mlartifacts").rglob(f"{run.run_id}/artifacts/images/*.png"))


def test_a_copy_needs_nothing_of_its_original(
    original: SmallLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = copy(original, tmp_path / "copy")
    shutil.rmtree(original.uri)
    tracking = connect(None, lake)
    client = tracking.client
    (run,) = client.search_runs([tracking.experiment_id])
    for place in (run.info.artifact_uri, client.get_experiment(tracking.experiment_id).artifact_location):
        assert place.startswith(f"file://{lake}/mlartifacts"), place
    page = client.download_artifacts(run.info.run_id, "lineage.html", str(tmp_path))
    assert str(original.quality) in Path(page).read_text()
    model = client.get_logged_model(find_model(tracking, str(original.quality)))
    assert model.tags["lineage.uri"].startswith(f"{lake}/") and model.artifact_location.startswith(f"file://{lake}/")
    assert f"{original.uri}/" not in run.inputs.dataset_inputs[0].dataset.source
    database = Path(lake, "mlflow.db").read_bytes()
    for ref in (original.quality, original.generations.ref):
        assert main(["lineage", "up", str(ref), "--lake", lake]) == 0
    assert main(["lineage", "down", "links", "--lake", lake]) == 0
    assert main(["dataset", "verify", "images", "--lake", lake]) == 0
    assert original.uri + "/" not in capsys.readouterr().out
    assert Path(lake, "mlflow.db").read_bytes() == database
    assert str(rebuild(lake)).startswith(f"sqlite:///{lake}/mlflow.db")


def test_a_lake_under_another_name_of_the_same_folder_is_left_alone(original: SmallLake, tmp_path: Path) -> None:
    (tmp_path / "other-name").symlink_to(original.uri)
    tracking = connect(None, str(tmp_path / "other-name"))
    (run,) = tracking.client.search_runs([tracking.experiment_id])
    assert run.info.artifact_uri.startswith(f"file://{original.uri}/mlartifacts")


def test_a_run_finds_its_models_in_the_copy(tmp_path: Path) -> None:
    lake = str(tmp_path / "copy")
    files.write_atomic(files.join(lake, "models", "base", "model_index.json"), b"{}")
    document = {
        "run": "r", "stage": "quality", "fingerprint": "f", "base": "/gone/lake/models/base", "text_encoder": None,
        "teacher": "/elsewhere/model", "datasets": [], "models": [], "config": {}, "start": None,
        "meaning": {"seed": 1, "global_batch": 1, "trainable": "all",
                    "objective": {"prediction": "epsilon", "zero_terminal_snr": False}},
    }  # fmt: skip
    files.write_atomic(files.join(lake, "checkpoints", "r", "run.json"), files.canonical_json(document))
    found = read_record(lake, "r")
    assert found is not None and (found["base"], found["teacher"]) == (f"{lake}/models/base", "/elsewhere/model")
