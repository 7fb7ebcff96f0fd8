"""What a wrong config is answered with: the key that was meant, the job that it is for, the shortest form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altdiffusion.cli import main as altdiffusion_main
from altdiffusion.config import from_dict
from altdiffusion.config_keys import PEERS, _meaning, example_of, explain, keys, meant
from altdiffusion.errors import AltDiffusionError
from jobs.encode import JOB as ENCODE
from jobs.harness import main
from jobs.train import JOB as TRAIN
from pipelines.kinds import CONFIGS, config_class, kind_of
from pipelines.train import TrainJobConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG_FILES = sorted((ROOT / "jobs/configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.learing_rate", "train.optimizer.lr"),
        ("train.learning_rate", "train.optimizer.lr"),
        ("train.lr", "train.optimizer.lr"),
        ("train.noise_ofset", "train.objective.noise_offset"),
        ("train.optimizer.warmup", "train.optimizer.warmup_steps"),
        ("train.batch-size", "train.global_batch"),
        ("train.max_train_steps", "train.steps"),
        ("steps", "train.steps"),
        ("train.rank", "train.lora.rank"),
        ("train.output_dir", "lake"),
        ("trian", "train"),
    ],
)
def test_a_wrong_key_is_answered_with_the_one_that_was_meant(wrong: str, right: str) -> None:
    assert right in meant(TrainJobConfig, wrong)


def test_what_other_programs_call_a_setting_exists_here() -> None:
    there = {f".{key.path}" for job in CONFIGS for key in keys(config_class(job))}
    missing = [end for end in PEERS.values() if not any(path.endswith(f".{end}") for path in there)]
    assert not missing


def test_every_key_has_a_meaning() -> None:
    missing = {
        f"{key.owner.__name__}.{key.field.name}"
        for job in CONFIGS
        for key in keys(config_class(job))
        if not _meaning(key)
    }
    assert not missing


def test_explain_states_meaning_type_unit_default_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN, ["--explain", "train.workers.cache_mb"]) == 0
    text = capsys.readouterr().out
    for part in ("whole number", "MiB", "2048", "must be at least 1", "only where, how fast"):
        assert part in text
    assert "part of the fingerprint" in " ".join(explain(TrainJobConfig, "train.optimizer.lr"))
    assert "part of the fingerprint" not in " ".join(explain(TrainJobConfig, "execution.log_format"))
    assert main(TRAIN, ["--explain", "train.lr"]) == 2
    assert "train.optimizer.lr" in capsys.readouterr().err


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_is_recognised_by_every_other_job(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from altdiffusion.config import load_tree

    tree = load_tree(str(file))
    own = [job for job in CONFIGS if job == file.stem.partition("-")[0]] or ["train"]
    for job in (TRAIN, ENCODE):
        if job.name not in own:
            assert kind_of(tree, job.name) == own[0]
            assert main(job, ["--config", str(file), "--dry-run"]) == 2
            assert f"run python -m jobs.{own[0]}" in capsys.readouterr().err


def test_the_shortest_form_of_a_section_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the message shows, once its names are replaced, is accepted but for what only its user knows."""
    (tmp_path / "c.yaml").write_text("lake: lake\n")
    assert main(TRAIN, ["--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    shown = capsys.readouterr().err.partition("e.g.\n")[2]
    (tmp_path / "c.yaml").write_text("lake: lake\n" + shown.replace("NAME", "name").replace("distillation", "quality"))
    assert main(TRAIN, ["--config", str(tmp_path / "c.yaml"), "train.start.base=b", "--dry-run"]) == 2
    assert "exactly one of" not in capsys.readouterr().err
    assert example_of(TrainJobConfig, "samples").startswith("samples:\n  prompts:")


def test_tabs_and_lakes_that_are_files_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tab.yaml").write_text("lake: lake\ntrain:\n\trun: a\n")
    assert main(TRAIN, ["--config", str(tmp_path / "tab.yaml"), "--dry-run"]) == 2
    assert "line 3: begins with a tab" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    config = ["--config", str(ROOT / "jobs/configs/demo/encode.yaml"), f"lake={tmp_path}/file"]
    for more in (["--dry-run"], []):
        assert main(ENCODE, [*config, *more]) == 2
        assert "is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["dataset", "list", "--lake", "{}/none"], "does not exist"),
        (["dataset", "list", "--lake", "{}/file"], "is a file"),
        (["lineage", "up", "dataset:a", "--lake", "{}/none"], "does not exist"),
        (["seen", "run", "--lake", "{}/none"], "does not exist"),
    ],
)
def test_a_lake_that_is_not_there_is_an_error(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert altdiffusion_main([argument.format(tmp_path) for argument in arguments]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_path_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, with a terminal that has ASCII only."""
    from tests.training_lake import make_lake

    lake = make_lake(tmp_path)
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "platform", ROOT)))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "altdiffusion.cli", *arguments, "--lake", lake]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    for out in ("/proc/none/page.html", str(tmp_path)):
        done = run("lineage", "page", "dataset:latents", "--out", out)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and "Remedy: " in done.stderr
    done = run("lineage", "up", "dataset:latents")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in run("dataset", "show", "日本").stderr


def test_json_of_a_manifest_reads_a_config_without_a_file() -> None:
    with pytest.raises(AltDiffusionError, match=r"did you mean train.optimizer.lr\?"):
        from_dict(TrainJobConfig, json.loads('{"lake": "l", "train": {"lr": 1}}'))
