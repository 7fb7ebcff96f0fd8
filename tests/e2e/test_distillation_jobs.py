"""From a table of translations to an alignment behind the encoder that learned them: the jobs as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from altdiffusion.diffusion import models
from tests import distillation_lake, training_lake
from tests.e2e.conftest import make_workspace
from tests.ray_folder import ray_folder


def write(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_table_of_translations_becomes_an_alignment(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    lake = distillation_lake.make_lake(workspace.path)
    training_lake.write_latents(lake, "latents", 40)
    training_lake.tokenizer().save_pretrained(workspace.path / "reader")
    rows = [(word, distillation_lake.cipher(word, "de")) for word in distillation_lake.words(80)]
    lines = [f"{english}\t{german}\n" for english, german in [*rows, rows[0], ("abc", ""), ("same", "same")]]
    (workspace.path / "pairs.tsv").write_text("".join(lines))
    common = {"lake": lake, "execution": {"backend": "inline"}}
    parallel = {
        **common,
        "corpora": [
            {"name": "t", "uri": "pairs.tsv", "format": "tsv", "language": "de", "translation": 1, "rows_per_unit": 30},
            {"name": "e", "uri": "pairs.tsv", "format": "tsv", "language": "en"},
        ],
        "pairs": "learned",
        "filter": {"check_languages": False, "buckets": 8, "held_out": 2},
        "ids": {"tokenizer": "reader", "max_length": 8, "teacher_tokenizer": "reader", "teacher_max_length": 8},
    }
    distillation = {
        **common,
        "execution": {"backend": "ray", "num_cpus": 1},
        "train": {
            "run": "distil", "stage": "distillation", "trainable": "all", "seed": 1, "steps": 20, "global_batch": 16,
            "start": {"base": f"{lake}/models/base", "text_encoder": f"{lake}/models/student"},
            "micro_batch": 8, "datasets": [{"name": "learned"}], "distillation": {"held_out": "learned-held-out"},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9}, "checkpoint_every": 10,
        },
    }  # fmt: skip
    alignment = {
        **common,
        "train": {
            "run": "align", "stage": "alignment", "trainable": "kv", "steps": 2, "global_batch": 4, "micro_batch": 4,
            "start": {"base": f"{lake}/models/base", "text_encoder": "distil"}, "datasets": [{"name": "latents"}],
            "optimizer": {"warmup_steps": 1},
        },
    }  # fmt: skip
    for job, tree in (("parallel", parallel), ("train", distillation), ("train", alignment)):
        run = ["-m", f"jobs.{job}", "--config", write(workspace.path / f"{len(str(tree))}.yaml", tree)]
        dry = workspace.run(*run, "--dry-run")
        assert dry.returncode == 0 and "plan:" in dry.stdout, dry.stdout + dry.stderr
        with ray_folder() as folder:
            done = workspace.run(*run, RAY_TMPDIR=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        if job == "parallel":
            assert "rejected: identical 1, text 1" in done.stdout, done.stdout
            assert "rejected: duplicate" in done.stdout, done.stdout
        again = workspace.run(*run)
        assert again.returncode == 0 and "already there" in again.stdout, again.stdout + again.stderr
        if tree is distillation:
            assert "[retrieval] step 20: de " in done.stdout, done.stdout
    exported = json.loads((Path(lake) / "exports/align/step-00000002/lineage.json").read_text())
    up = workspace.run("-m", "altdiffusion.cli", "lineage", "up", "checkpoint:align", "--lake", lake)
    for part in ("checkpoint distil/step-00000020", "dataset learned", "dataset learned-candidates", "source t"):
        assert part in up.stdout, f"{part} is not in\n{up.stdout}{up.stderr}"
    assert exported["stage"] == "alignment"
    student = models.load_bundle(f"{lake}/exports/distil/step-00000020").text_encoder.state_dict()
    behind = models.load_bundle(f"{lake}/exports/align/step-00000002").text_encoder.state_dict()
    assert all((behind[name] == tensor).all() for name, tensor in student.items())
    shutil.rmtree(f"{lake}/exports/distil")  # what it was exported from is still known
    counted = workspace.run("-m", "altdiffusion.cli", "seen", "align", "--lake", lake, "--json")
    assert counted.returncode == 0, counted.stdout + counted.stderr
    assert [(part["run"], part["steps"], part["samples"]) for part in json.loads(counted.stdout)] == [
        ("align", 2, 8), ("distil", 20, 320)
    ]  # fmt: skip
