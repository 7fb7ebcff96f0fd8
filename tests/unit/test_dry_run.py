"""A dry run reports what the job would stop at, and fails as the job would; it changes nothing."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion.config import resolved
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.storage import files
from altdiffusion.training.launch_local import run_local
from jobs.harness import main
from tests import training_lake
from tests.training_lake import Recorder, file_hashes


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training_lake.make_lake(tmp_path_factory.mktemp("dry"), rows=40)


def train(lake: str, tmp_path: Path, *options: str, **changes: Any) -> int:
    """Dry-run one training job; warm-up is 1 unless `changes` sets it."""
    from jobs.train import JOB

    settings = training_lake.config(lake, **{"optimizer": {"warmup_steps": 1}, **changes})
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"lake": lake, "train": resolved(settings)}))
    return main(JOB, ["--config", str(path), "--dry-run", *options])


def test_a_run_that_fits_is_reported_and_nothing_changes(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_hashes(lake)
    assert train(lake, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "epochs      2.40 of latents" in printed
    assert "learns      epsilon, noise scaled_linear 0.00085 to 0.012, 1000 steps" in printed
    assert "disk        " in printed and file_hashes(lake) == before


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"datasets": [{"name": "nothing"}]}, ("dataset nothing", "latents")),
        ({"datasets": [{"name": "latents"}, {"name": "latents"}]}, ("datasets.0", "datasets.1", "same version")),
        ({"start": {"base": "/nowhere/base"}}, ("/nowhere/base", "missing or empty")),
        ({"start": {"base": "BASE", "text_encoder": "distill"}}, ("text encoder distill", "neither a run of")),
        ({"start": {"checkpoint": "nobody"}, "stage": "quality"}, ("run nobody", "train it first")),
        ({"continue_from": "nobody@3", "key": None}, ("run nobody", "continue_from")),
        ({"objective": {"prediction": "v_prediction"}}, ("epsilon", "v_prediction", "scheduler_config.json")),
        ({"online": {"resolution": 16}}, ("holds latents, not images",)),
        ({"optimizer": {"warmup_steps": 13}}, ("warmup_steps", "more than the run's 12 steps")),
        ({"run": "taken", "seed": 9}, ("'taken'", "seed (5, now 9)")),
    ],
)
def test_what_the_run_would_stop_at_is_named_and_fails(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    if changes.get("run") == "taken":
        fast = {"optimizer": {"warmup_steps": 1}, "steps": 3}
        run_local(training_lake.config(lake, run="taken", **fast), lake, reporter=Recorder())
    if changes.get("start", {}).get("base") == "BASE":
        changes = {"start": {**changes["start"], "base": f"{lake}/models/base"}}
    before = file_hashes(lake)
    assert train(lake, tmp_path, **changes) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and all(part in printed.err for part in parts), printed.err
    assert "warmup" in str(changes) or "plan: train stage" in printed.out
    assert file_hashes(lake) == before


def test_what_is_elsewhere_is_not_read_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = "memory://dry-run-lake"
    start = {"base": f"hf://someone/small@{'ab' * 20}"}
    assert train(away, tmp_path, start=start) == 0
    assert "not looked at: the lake is not on this machine (--remote looks)" in capsys.readouterr().out
    assert train(away, tmp_path, "--remote", start=start) == 2
    assert "dataset latents" in capsys.readouterr().err


def test_a_base_that_would_be_fetched_is_named_and_the_rest_is_checked(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = f"hf://someone/small@{'ab' * 20}"
    assert train(lake, tmp_path, start={"base": hub}) == 0
    assert f"not looked at: {hub}" in capsys.readouterr().out
    assert train(lake, tmp_path, start={"base": hub}, datasets=[{"name": "latents"}, {"name": "latents"}]) == 2
    assert "same version" in capsys.readouterr().err


def test_weights_that_cannot_be_read_fail_the_dry_run_of_every_job_that_opens_them(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest of a file does not show whether its values are usable."""
    from safetensors.torch import load_file, save_file

    from jobs import encode, generate

    base, path = tmp_path / "base", tmp_path / "job.yaml"
    shutil.copytree(f"{lake}/models/base", base)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"id": "a-en", "language": "en", "prompt": "cat", "seed": 1, "width": 16, "height": 16})
    )
    drawn = {"model": {"folder": str(base)}, "prompts": {"file": str(prompts)}}
    folders = {"vae": f"{base}/vae", "tokenizer": f"{base}/tokenizer"}
    for part in ("unet", "vae"):
        file = base / part / "diffusion_pytorch_model.safetensors"
        kept, weights = file.read_bytes(), load_file(file)
        key = sorted(weights)[0]
        weights[key].view(-1)[0] = float("nan")
        save_file(weights, file)
        problem = f"{file.name}: has values that are not finite as float32 in the key {key}"
        before = file_hashes(lake)
        assert train(lake, tmp_path, start={"base": str(base)}) == 2
        assert problem in capsys.readouterr().err
        path.write_text(yaml.safe_dump({"lake": lake, "generate": drawn}))
        assert main(generate.JOB, ["--config", str(path), "--dry-run"]) == 2
        assert problem in capsys.readouterr().err
        if part == "vae":
            path.write_text(yaml.safe_dump({"lake": lake, "encode": folders}))
            assert main(encode.JOB, ["--config", str(path), "--dry-run"]) == 2
            assert problem in capsys.readouterr().err
        assert file_hashes(lake) == before
        file.write_bytes(kept)


def test_other_jobs_check_their_inputs(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import encode, generate

    base, path = f"{lake}/models/base", tmp_path / "job.yaml"
    folders = {"vae": f"{base}/vae", "tokenizer": f"{base}/tokenizer"}
    path.write_text(yaml.safe_dump({"lake": lake, "encode": folders}))
    assert main(encode.JOB, ["--config", str(path), "--dry-run"]) == 2
    assert "error: dataset images" in capsys.readouterr().err
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"id": "a-en", "language": "en", "prompt": "cat", "seed": 1, "width": 16, "height": 16})
    )
    for model, status in ({"folder": base}, 0), ({"run": "nobody"}, 2):
        path.write_text(yaml.safe_dump({"lake": lake, "generate": {"model": model, "prompts": {"file": str(prompts)}}}))
        assert main(generate.JOB, ["--config", str(path), "--dry-run"]) == status
        printed = capsys.readouterr()
        assert "prompts  1" in printed.out and ("run nobody" in printed.err) == (status == 2)
    assert not files.exists(f"{lake}/mlflow.db")


def test_a_dry_run_counts_prompts_languages_rejects_and_what_is_cut_off(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import generate

    base, path, prompts = f"{lake}/models/base", tmp_path / "job.yaml", tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "a small house by the sea"}, {"prompt": "ein kleines Haus am Meer", "language": "de_AT"},
        {"prompt": " "}, {"prompt": ""}, {"prompt": "маленький будинок біля моря"}, {"prompt": "x", "seed": "?"},
        {"id": "long", "prompt": " ".join(f"word{number}" for number in range(400))},
    ]  # fmt: skip

    def dry_run(**settings: Any) -> tuple[int, str, str]:
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = {"file": str(prompts), "default_size": 16, **settings}
        path.write_text(yaml.safe_dump({"lake": lake, "generate": {"model": {"folder": base}, "prompts": file}}))
        status = main(generate.JOB, ["--config", str(path), "--dry-run"])
        return (status, *capsys.readouterr())

    status, out, _ = dry_run()
    assert status == 0
    assert "prompts  4 of 7 rows" in out and "languages  und 3, de-AT 1" in out
    assert "reject prompt_blank  2, e.g. row 3, field prompt: ' ' is blank" in out
    assert "reject prompt_seed  1, e.g. row 6, field seed: '?' is not a whole number of 64 bits" in out
    positions = load_bundle(base).tokenizer.model_max_length
    assert f"more than the text encoder's {positions} tokens; of row-0000001, which has " in out
    assert "it does not read: '" in out and " sea'" in out
    status, out, _ = dry_run(detect_language=True)  # by curation's own identifier
    assert status == 0 and "en 1" in out and "de-AT 1" in out and "uk 1" in out, out
    status, out, err = dry_run(default_size=12, size_multiple=4)
    assert status == 2 and "asks for 12 x 12 pixels" in err and "prompts.size_multiple: 8" in err, err
    rows[:] = rows[2:4]
    status, out, err = dry_run()
    assert status == 2 and "no usable row among 2 (prompt_blank 2); the first: row 3" not in out
    assert "has no usable row among 2 (prompt_blank 2)" in err


@pytest.mark.parametrize(
    ("job", "config", "key"),
    [
        ("import", "own/import", "images.uri"),
        ("curate", "demo/curate", "sources.3.source.uri"),
        ("curate", "m18/curate", "sources.1.source.uri"),
        ("curate", "m18/curate", "sources.0.source.blocklist"),
        ("curate", "m18/curate", "download.image_blocklist"),
        ("curate", "m18/curate", "language.model"),
        ("score", "m18/score", "score.clip"),
        ("score", "m18/score", "score.nsfw.head.uri"),
        ("score", "m18/score", "score.watermark.classifier.folder"),
        ("encode", "own/encode", "encode.vae"),
        ("encode", "own/encode", "encode.tokenizer"),
        ("parallel", "m18/parallel", "corpora.3.uri"),
        ("train", "own/whole", "train.start.base"),
        ("generate", "own/generate", "generate.prompts.file"),
        ("evaluate", "demo/evaluate", "cases"),
        ("measure", "m18/measure", "cases"),
    ],
)
def test_what_a_config_names_and_is_not_there_is_named(
    job: str, config: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(Path(__file__).parents[2] / f"jobs/configs/{config}.yaml")
    missing = f"{tmp_path}/not-there.tsv"
    entry = importlib.import_module(f"jobs.{job}").JOB
    assert main(entry, ["--config", path, "--dry-run", f"lake={tmp_path}/lake", f"{key}={missing}"]) == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if missing in line)
    assert ". Remedy: " in error, error
    assert not (tmp_path / "lake").exists()
