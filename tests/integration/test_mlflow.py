"""MLflow as the view of the lineage, on the SQLite store: one run per job, replays that add nothing, rebuild."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.alias_view import show_aliases_in
from altdiffusion.lineage.compared import flatten, key_name
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.mlflow_view import RunView, find_model
from altdiffusion.lineage.outbox import MetricOutbox, OutboxReader
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.lineage.tracking import connect
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.aliases import Alias, write_alias
from tests.lineage_lake import BASE, DRAWN, SmallLake
from tests.ports import free_port


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database: its tables take seconds to create."""
    folder = tmp_path_factory.mktemp("template")
    connect(f"sqlite:///{folder}/mlflow.db", str(folder / "other"), "unused")
    return folder / "mlflow.db"


@pytest.fixture
def small(tmp_path: Path, template: Path) -> SmallLake:
    small = SmallLake(tmp_path / "lake")
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    return small


def train(small: SmallLake, **changed: Any) -> JobRun:
    """Return the training job of run `quality`, as its harness opens it."""
    settings: dict[str, Any] = {
        "job": "train",
        "name": "quality",
        "fingerprint": files.sha256_hex(b"quality"),
        "config": {
            "train": {"stage": "quality", "steps": 100, "optimizer": {"lr": 1e-4}, "guards": {"spike": None}},
            "tracking": {"uri": "sqlite:///${env:DATABASE}"},
        },
        "lake": small.lake,
    }
    return JobRun.open(**{**settings, **changed})


def record(small: SmallLake, run: JobRun) -> None:
    """Record what a training job records."""
    run.input(small.latents, "training")
    run.input(small.alignment, "start")
    outbox = MetricOutbox(run.metrics_path)
    run.ship(outbox.path)
    for step in range(100):
        outbox.append(step=step, metrics={"train/loss": 1 / (step + 1), "train/lr": 1e-4})
    outbox.append(step=100, metrics={"train/loss": math.nan, "train/norm": math.inf})
    run.checkpoint(small.quality, step=100, metrics={"loss": 0.25})
    for step in (0, 100):
        run.image("samples/de", DRAWN["de"], step=step)
        run.image("samples/_all", Image.new("RGB", (640, 480), (step, 0, 0)), step=step)
    run.page(small.quality)


def history(run: JobRun, key: str) -> list[tuple[int, float]]:
    points = run.tracking.client.get_metric_history(run.run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_a_training_run_is_browsable(small: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(8)
    monkeypatch.setenv("DATABASE", secret)
    with train(small) as run:
        record(small, run)
    client = run.tracking.client
    seen = client.get_run(run.run_id)
    assert seen.info.status == "FINISHED" and seen.info.run_name == "train/quality"
    assert seen.data.params["train.optimizer.lr"] == "0.0001"
    assert sorted(seen.data.params) == ["train.optimizer.lr", "train.stage", "train.steps"]
    config = Path(client.download_artifacts(run.run_id, "config.yaml", str(Path(small.uri)))).read_text()
    assert yaml.safe_load(config)["train"]["guards"] == {"spike": None}
    assert "${env:DATABASE}" in config and secret not in config
    assert seen.data.tags["mlflow.source.name"] == "python -m jobs.train" and seen.data.tags["mlflow.user"]
    assert len(history(run, "train/loss")) == 101
    assert history(run, "train/loss")[:2] == [(0, 1.0), (1, 0.5)]

    (dataset,) = seen.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("latents", small.latents.ref.digest[:32])
    assert dataset.tags[0].value == "training"
    assert json.loads(dataset.dataset.profile)["num_rows"] == 3
    assert {"name": "sample_id", "type": "long", "required": True} in json.loads(dataset.dataset.schema)[
        "mlflow_colspec"
    ]
    assert json.loads(dataset.dataset.source) == {"uri": small.latents.uri}

    (output,) = seen.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (output.step, model.tags["lineage.ref"]) == (100, str(small.quality))
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.step) == ("checkpoint/loss", 0.25, 100)
    assert (metric.dataset_name, metric.dataset_digest) == ("latents", small.latents.ref.digest[:32])
    for ref in (small.latents.ref, small.images.ref, small.links.ref):
        assert model.tags[f"lineage.ds.{ref.digest[:32]}"] == ref.name
    for ref in (small.alignment, BASE):
        assert model.tags[f"lineage.model.{ref.digest[:32]}"] == ref.name
    assert "| dataset | links |" in model.tags["mlflow.note.content"]
    started_from = find_model(run.tracking, str(small.alignment))
    assert [given.model_id for given in seen.inputs.model_inputs] == [started_from]
    tag = f"lineage.ds.{small.links.ref.digest[:32]}"  # "which models hold this dataset?" in one call
    found = client.search_logged_models([run.tracking.experiment_id], filter_string=f"tags.`{tag}` = 'links'")
    assert {one.tags["lineage.ref"] for one in found} == {str(small.quality), str(small.alignment)}

    names = [file.path for file in client.list_artifacts(run.run_id, "images")]
    assert sum("samples~de+step+0+" in name for name in names) == 2  # the image and its thumbnail
    assert len(names) == 8
    assert seen.data.tags["mlflow.loggedImages"] == "True"
    page = client.download_artifacts(run.run_id, "lineage.html", str(Path(small.uri)))
    assert str(small.quality) in Path(page).read_text()
    assert Path(small.uri, "mlartifacts").is_dir()
    kept = [name for name in Path(run.folder, "files").rglob("*") if name.is_file()]
    assert len(kept) == 3  # for a rebuild; the same image at two steps is kept once


def test_restarts_are_one_run_and_replays_add_nothing(small: SmallLake) -> None:
    with pytest.raises(RuntimeError), train(small) as first:
        record(small, first)
        raise RuntimeError("worker lost")
    assert first.tracking.client.get_run(first.run_id).info.status == "FAILED"
    assert first.tracking.client.get_run(first.run_id).data.tags["altdiffusion.error"] == "worker lost"

    second = train(small, config={"train": {"stage": "quality", "steps": 200}})
    assert second.run_id == first.run_id
    assert second.tracking.client.get_run(second.run_id).info.status == "RUNNING"
    record(small, second)
    second.close()
    client = second.tracking.client

    def everything() -> Any:
        seen = client.get_run(second.run_id)
        return (
            history(second, "train/loss")[:100],
            len(history(second, "train/loss")),
            sorted(seen.data.params.items()),
            [(one.dataset.name, one.dataset.digest) for one in seen.inputs.dataset_inputs],
            sorted(one.model_id for one in seen.inputs.model_inputs),
            [(one.model_id, one.step) for one in seen.outputs.model_outputs],
            len(client.search_logged_models([second.tracking.experiment_id])),
        )

    before = everything()
    assert before[0] == [(step, 1 / (step + 1)) for step in range(100)]  # every point once, though recorded twice
    assert before[1] == 101
    seen = client.get_run(second.run_id)
    assert seen.data.params["train.steps"] == "100" and seen.data.tags["restarted.train.steps"] == "200"
    assert seen.info.status == "FINISHED"

    view = RunView(second.tracking, second.run_id, small.uri)
    for name, send in (("metrics.jsonl", view.metrics), ("journal.jsonl", view.apply)):
        reader = OutboxReader(str(Path(second.folder, name)), remember=False)
        while (chunk := reader.read()) is not None:
            send(chunk.records)
            reader.commit(chunk.end)
    assert everything() == before
    with train(small, fingerprint="0" * 64) as other:
        pass
    assert other.run_id != second.run_id


def test_status_states_how_the_job_ended(small: SmallLake) -> None:
    ends: list[tuple[BaseException | None, str]] = [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ]
    for number, (error, status) in enumerate(ends):
        run = train(small, name=f"run-{number}")
        try:
            with run:
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
        assert run.tracking.client.get_run(run.run_id).info.status == status


def test_a_record_that_mlflow_refuses_costs_only_itself(small: SmallLake, caplog: pytest.LogCaptureFixture) -> None:
    with train(small) as run:
        run.checkpoint(Ref("checkpoint", "nowhere/step-00000001", "0" * 64), step=1)
        run.image("samples/de", b"no picture", step=1)
        run.artifact("nowhere.txt")
        outbox = MetricOutbox(run.metrics_path)
        outbox.append(step=1, metrics={"über loss!": 1.0, "../../escape": 2.0, "k" * 300: 3.0})
        run.ship(outbox.path)
        run.output(small.generations)
    seen = run.tracking.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.data.tags[f"lineage.out.{small.generations.ref.digest[:32]}"] == "generations"
    assert sorted(seen.data.metrics.values()) == [1.0, 2.0, 3.0]
    assert sum("is skipped" in message for message in caplog.messages) >= 2


def test_logging_does_not_wait_for_the_store(small: SmallLake) -> None:
    run = train(small)
    outbox = MetricOutbox(run.metrics_path)
    run.ship(outbox.path)
    with closing(sqlite3.connect(f"{small.uri}/mlflow.db", isolation_level=None, timeout=60)) as holder:
        holder.execute("BEGIN EXCLUSIVE")  # every reader of the store now waits for it
        for step in range(100):
            run.checkpoint(small.quality, step=step)
            outbox.append(step=step, metrics={"loss": 1.0})
        holder.execute("ROLLBACK")
    assert run.close()
    assert [step for step, _ in history(run, "loss")] == list(range(100))


def test_keys_and_values_fit_mlflow() -> None:
    assert key_name("a/../../b") == "b" and key_name("/etc/x") == "etc/x" and key_name("größe [px]") == "gr__e _px_"
    assert len(key_name("k" * 400)) == 250
    flat = flatten({"a": {"b": [1, 2], "c": None, "empty": {}}, "long": "y" * 9000, "t": True})
    assert (flat["a.b"], flat["a.c"], flat["a.empty"], flat["t"]) == ("[1, 2]", "null", "{}", "true")
    assert len(flat["long"]) <= 6000
    assert flatten({"long": "y" * 9000}) != flatten({"long": "y" * 8999 + "z"})


def test_an_unreachable_server_is_a_quick_clear_error(small: SmallLake) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(AltDiffusionError) as caught:
        train(small, tracking_uri=uri)
    assert time.monotonic() - start < 60
    text = str(caught.value)
    assert "127.0.0.1" in text and "Remedy: start it" in text and "secret" not in text
    assert not Path(small.uri, "tracking").exists()


def test_a_server_that_accepts_and_never_answers_is_a_quick_error(small: SmallLake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        with pytest.raises(AltDiffusionError, match="cannot be reached"):
            train(small, tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - start < 60


def test_a_server_that_requires_credentials_is_reported(small: SmallLake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(AltDiffusionError, match="MLFLOW_TRACKING_USERNAME"):
            train(small, tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(("uri", "word"), [("./mlruns", "folder"), ("sqlite:////proc/nowhere/mlflow.db", "written")])
def test_an_unusable_store_is_a_clear_error(small: SmallLake, uri: str, word: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        train(small, tracking_uri=uri)
    assert uri.removeprefix("sqlite:///") in str(caught.value) and word in str(caught.value)


def test_a_lake_elsewhere_needs_a_tracking_server() -> None:
    with pytest.raises(AltDiffusionError, match=r"set tracking\.uri"):
        connect(None, "memory://elsewhere")


def test_a_job_that_ends_in_an_outage_is_shipped_by_the_next_start(
    small: SmallLake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here the outage is a locked database; a killed server is in test_mlflow_server.py."""
    monkeypatch.setattr("altdiffusion.lineage.job_run.CLOSE_TIMEOUT_S", 1.0)
    monkeypatch.setattr("altdiffusion.lineage.database.LOCK_TIMEOUT_S", 0.5)
    run = train(small)
    time.sleep(0.5)
    with closing(sqlite3.connect(f"{small.uri}/mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(AltDiffusionError, match="not held by another program"):
            train(small, name="another")
        outbox = MetricOutbox(run.metrics_path)
        run.ship(outbox.path)
        for step in range(10):
            outbox.append(step=step, metrics={"loss": 1.0})
        run.output(small.generations)
        start = time.monotonic()
        assert not run.close()
        assert time.monotonic() - start < 40
        assert "altdiffusion lineage flush --lake" in caplog.text
        holder.execute("ROLLBACK")
    monkeypatch.undo()
    with train(small) as again:
        again.ship(again.metrics_path)
    assert again.run_id == run.run_id
    assert [step for step, _ in history(again, "loss")] == list(range(10))
    assert f"lineage.out.{small.generations.ref.digest[:32]}" in again.tracking.client.get_run(run.run_id).data.tags


def test_a_damaged_database_is_a_clear_error(small: SmallLake) -> None:
    Path(small.uri, "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(AltDiffusionError, match=r"mlflow\.db"):
        train(small)


def empty_store(small: SmallLake, template: Path) -> str:
    database = Path(small.uri).parent / "empty.db"
    shutil.copy(template, database)
    return f"sqlite:///{database}"


def shown(tracking: Any) -> Any:
    """Return what a tracking server shows of the lake, without ids and times."""
    client, experiment = tracking.client, tracking.experiment_id
    runs = client.search_runs([experiment])
    models = client.search_logged_models([experiment])
    return (
        sorted(
            (
                run.info.run_name,
                tuple(
                    sorted(
                        (one.dataset.name, one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs
                    )
                ),
                len(run.outputs.model_outputs) if run.outputs else 0,
            )
            for run in runs
        ),
        sorted(model.tags["lineage.ref"] for model in models),
    )


def test_rebuild_refills_an_empty_mlflow_from_manifests_alone(
    small: SmallLake, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = empty_store(small, template)
    done = rebuild(small.uri, uri)
    assert (done.journals, done.versions, done.checkpoints) == (0, 5, 3)
    tracking = connect(uri, small.uri)
    runs, models = shown(tracking)
    assert [name for name, _, _ in runs] == [
        "curate/images",
        "curate/links",
        "encode/latents",
        "generate/generations",
        "prompts/prompts",
        "train/alignment",
        "train/quality",
    ]
    quality = next(run for run in runs if run[0] == "train/quality")
    assert quality[1:] == ((("latents", small.latents.ref.digest[:32], "training"),), 2)
    assert models == sorted(map(str, (BASE, small.alignment, small.quality_50, small.quality)))
    generate = next(run for run in runs if run[0] == "generate/generations")
    assert {(name, context) for name, _, context in generate[1]} == {("prompts", "input"), ("generations", "output")}
    model = tracking.client.get_logged_model(find_model(tracking, str(small.quality)))
    assert {metric.key: metric.value for metric in model.metrics} == {"checkpoint/loss": 0.25}
    run = tracking.client.get_run(model.source_run_id)
    assert run.data.params["optimizer.lr"] == "0.0001" and run.info.status == "FINISHED"

    assert main(["lineage", "rebuild", "--lake", small.uri, "--tracking-uri", uri]) == 0
    assert "0 dataset versions and 0 checkpoints added" in capsys.readouterr().out
    assert shown(tracking) == (runs, models)


def test_rebuild_brings_back_the_curves_of_jobs(small: SmallLake, template: Path) -> None:
    with train(small) as run:
        record(small, run)
    before = history(run, "train/loss")[:100]
    uri = empty_store(small, template)
    assert rebuild(small.uri, uri).journals == 1
    tracking = connect(uri, small.uri)
    (again,) = tracking.client.search_runs(
        [tracking.experiment_id], filter_string="attributes.run_name = 'train/quality'"
    )
    points = tracking.client.get_metric_history(again.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points)[:100] == before
    assert len(again.outputs.model_outputs) == 1  # as in the original
    assert rebuild(small.uri, uri, manifests=True).checkpoints == 1
    again = tracking.client.get_run(again.info.run_id)
    assert len(again.outputs.model_outputs) == 2  # the one in the journal, and the one that only the lake holds


def test_an_emptied_mlflow_gets_the_job_again_at_its_next_start(small: SmallLake, template: Path) -> None:
    with train(small) as run:
        record(small, run)
    with train(small, tracking_uri=empty_store(small, template)) as run:
        run.ship(run.metrics_path)
    assert len(history(run, "train/loss")) == 101
    assert len(run.tracking.client.get_run(run.run_id).outputs.model_outputs) == 1


def test_an_alias_moves_from_one_model_to_another_and_survives_a_rebuild(small: SmallLake) -> None:
    def holders() -> list[str]:
        tracking = connect(None, small.uri)
        models = (find_model(tracking, str(ref)) for ref in (small.quality_50, small.quality))
        tags = [tracking.client.get_logged_model(model).tags for model in models]
        return [tag.get("altdiffusion.alias.champion", "") for tag in tags]

    def registered() -> dict[str, dict[str, str]]:
        client = connect(None, small.uri).client
        refs = {(one.name, str(one.version)): one.tags["lineage.ref"] for one in client.search_model_versions()}
        models = client.search_registered_models()
        return {one.name: {key: refs[one.name, str(at)] for key, at in one.aliases.items()} for one in models}

    write_alias(small.uri, "champion", Alias(ref=small.quality_50, content="a" * 64), {"first": True})
    rebuild(small.uri)
    assert holders() == ["true", ""]
    write_alias(small.uri, "champion", Alias(ref=small.quality, content="b" * 64), {})
    assert show_aliases_in(small.uri, None)
    assert holders() == ["", "true"]
    assert registered() == {"altdiffusion-quality": {"champion": str(small.quality)}}
    with train(small) as run:
        run.checkpoint(small.quality_50, step=50)
        run.candidate(small.quality_50)
    write_alias(small.uri, "champion", Alias(ref=small.alignment, content="c" * 64), {})
    write_alias(small.uri, "latest", Alias(ref=small.alignment, content="c" * 64), {})  # which MLflow reserves
    assert show_aliases_in(small.uri, None)
    assert registered() == {
        "altdiffusion-quality": {"candidate": str(small.quality_50)},
        "altdiffusion-alignment": {"champion": str(small.alignment)},
    }
    version = run.tracking.client.get_model_version_by_alias("altdiffusion-quality", "candidate")
    assert version.run_id == run.run_id and find_model(run.tracking, str(small.quality_50)) in version.description
    assert version.tags["lineage.export"] == f"{small.uri}/exports/quality/step-00000050"
    assert not show_aliases_in(f"{small.uri}/elsewhere", None)
