"""The pipeline lends curation's language identifier to the import of prompts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from altdiffusion.config import from_dict
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.storage.dataset import Lake, Version
from pipelines.generate import GenerateJobConfig, pipeline_steps


def imported(lake: Lake, file: Path, **settings: object) -> Version:
    """Return the version of prompts that the job's first step makes."""
    prompts = {"file": str(file), **settings}
    tree = {"lake": lake.uri, "generate": {"model": {"folder": "not read"}, "prompts": prompts}}
    step = pipeline_steps(from_dict(GenerateJobConfig, tree))[0]
    pickle.loads(pickle.dumps(step.work(lake)))  # it travels to a worker
    return run_pipeline_step(lake, step, backend="inline")[0]


def test_languages_are_detected_in_the_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake, file = Lake(str(tmp_path / "lake")), tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "ein kleines Haus am Meer im Winter"}, {"prompt": "маленький будинок біля моря"},
        {"prompt": "夕暮れの海辺の小さな家"}, {"prompt": "xqzt"}, {"prompt": "a small house", "language": "sv"},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = imported(lake, file)
    assert plain.manifest.rows_by_language == {"sv": 1, "und": 4}
    detected = imported(lake, file, detect_language=True)
    assert detected.read(["language"])["language"].to_pylist() == ["de", "uk", "ja", "und", "sv"]
    assert (plain.manifest.fingerprint, plain.ref.digest) != (detected.manifest.fingerprint, detected.ref.digest)
    assert "language" in detected.manifest.config and "language" not in plain.manifest.config


def test_a_job_without_a_good_row_leaves_no_version(tmp_path: Path) -> None:
    from altdiffusion.errors import AltDiffusionError

    lake, file = Lake(str(tmp_path / "lake")), tmp_path / "prompts.txt"
    file.write_text("\x00\n\x01\n")
    with pytest.raises(AltDiffusionError, match=r"no usable row among 2 \(prompt_blank 2\); the first: row 1"):
        imported(lake, file)
    assert lake.dataset("prompts").digests() == []
