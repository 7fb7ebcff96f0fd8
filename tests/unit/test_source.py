"""What a start of a job records of its code, machine and command line, and that no secret is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import altdiffusion
from altdiffusion.cli import main
from altdiffusion.credentials import redacted_command
from altdiffusion.lineage import source
from altdiffusion.lineage.graph import scan
from altdiffusion.lineage.starts import Start, read_starts
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from tests.lineage_lake import BASE, SmallLake, checkpoint

SECRET = "Zq17opensesame"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", SECRET], ["--token=" + SECRET], ["--api-key", SECRET], ["--hf_token", SECRET],
        ["--db-password=" + SECRET], ["--auth", SECRET], ["--pass", SECRET], ["tracking.password=" + SECRET],
        [f"tracking.uri=http://bob:{SECRET}@host:5000/x"], [f"s3://KEY:{SECRET}@bucket"], [f"HF_TOKEN={SECRET}"],
        [f'{{"token": "{SECRET}"}}'], [f"{{token: {SECRET}}}"], ["-H", f"Authorization: Bearer {SECRET}"],
        [f"X-Api-Key: {SECRET}"], [f"https://a.example/?sig={SECRET}"], [f"a=1,secret='{SECRET} and more'"],
        ["--client-secret", SECRET, "x"], ["--password", f"a b {SECRET}"],
    ],
)  # fmt: skip
def test_secrets_in_a_command_line_are_hidden(arguments: list[str]) -> None:
    hidden = redacted_command(["python", "-m", "jobs.train", *arguments, "train.steps=5"])
    assert SECRET not in " ".join(hidden) and "***" in " ".join(hidden)
    assert hidden[:3] == ["python", "-m", "jobs.train"] and hidden[-1] == "train.steps=5"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "jobs/configs/m18/align.yaml", "tracking.uri=http://host:5000", "data.token_weight=3"],
        ["tracking.uri=http://u:${env:PW}@host", "--token", "${env:HF_TOKEN}", "key.password=${file:/run/s}"],
        ["--lake", "s3://bucket/folder", "--max-rows", "5", "a:b", "path=/a/token/b", "--token-file", "/run/token"],
    ],
)
def test_what_is_not_a_secret_stays(arguments: list[str]) -> None:
    assert redacted_command(arguments) == arguments


def git(folder: Path, *arguments: str) -> None:
    options = ["-c", "user.name=a", "-c", "user.email=a@a.example", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_working_copy_is_described(tmp_path: Path) -> None:
    facts = source.git_facts.__wrapped__
    assert facts(tmp_path) == {"commit": "not a git checkout"}
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "a.py").write_text("1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = facts(tmp_path)
    assert len(clean["commit"]) == 40 and clean["working_copy"] == "clean"
    (tmp_path / "output.png").write_text("not code")
    assert facts(tmp_path) == clean
    found = set()
    for text in ("2\n", "3\n"):
        (tmp_path / "platform" / "a.py").write_text(text)
        found.add(facts(tmp_path)["working_copy"])
    git(tmp_path, "checkout", "platform/a.py")
    (tmp_path / "platform" / "b.py").write_text("new\n")
    found.add(facts(tmp_path)["working_copy"])
    assert len(found) == 3 and all(text.startswith("dirty, 1 changed files, ") for text in found)
    assert facts(tmp_path)["commit"] == clean["commit"]
    (tmp_path / ".git" / "HEAD").write_text("nonsense")
    assert facts(tmp_path) == {"commit": "git cannot read the checkout"}


def test_the_host_is_a_class_and_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text("Model: \t NVIDIA H100 80GB HBM3\nIRQ: 5\n")
    assert source.gpus(tmp_path) == ["2 x NVIDIA H100 80GB HBM3"] and source.gpus(tmp_path / "none") == []
    monkeypatch.setattr(source, "_GPUS", tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jobs.train", "--token", SECRET])
    facts = source.source_facts()
    assert "CPUs" in facts["host"] and facts["host"].endswith("2 x NVIDIA H100 80GB HBM3")
    assert facts["version"] == altdiffusion.__version__ and facts["command"] == "python -m jobs.train --token '***'"
    assert {"python", "ray", "torch", "diffusers", "transformers", "mlflow"} < set(facts)
    tags = source.source_tags("train", {**facts, "commit": source.NO_CHECKOUT})
    assert "mlflow.source.git.commit" not in tags and tags["altdiffusion.source.commit"] == "not a git checkout"


def test_a_difference_of_code_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = SmallLake(tmp_path / "lake")
    other = checkpoint(small.lake, "other", 100, "alignment", [BASE, small.latents.ref], {"loss": 0.75})
    for time_ms, (ref, commit, torch) in enumerate(
        [(small.alignment, "a" * 40, "2.5"), (other, "b" * 40, "2.5"), (other, "c" * 40, "2.6")], start=5
    ):
        facts = {"commit": commit, "torch": torch, "host": f"{time_ms} CPUs", "command": f"run {time_ms}"}
        start = Start(
            job="train", name=ref.name.split("/")[0], fingerprint="f" * 64, time_ms=time_ms, facts=facts, outputs=[]
        )
        start.write(small.uri)
        start.output(small.uri, str(ref))
    graph, starts = scan(small.uri), read_starts(small.uri)
    made = starts.of(graph, graph.nodes[str(other)])
    assert made is not None and made.facts["commit"] == "b" * 40  # the first that put it out
    assert main(["lineage", "diff", str(small.alignment), str(other), "--lake", small.uri, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["code"] == [{"key": "commit", "a": "a" * 40, "b": "b" * 40}]
    assert main(["lineage", "diff", str(small.alignment), str(other), "--lake", small.uri]) == 1
    assert f'commit: "{"a" * 40}" | "{"b" * 40}"' in capsys.readouterr().out
    damaged = files.join(small.uri, "starts", "train-x-f", "1.json")
    files.write_atomic(damaged, b"{")
    assert main(["lineage", "diff", str(small.alignment), str(small.alignment), "--lake", small.uri]) == 3
    assert damaged in capsys.readouterr().err


def test_references_of_results_are_kept_once(tmp_path: Path) -> None:
    start = Start(job="curate", name="x/y", fingerprint="f" * 64, time_ms=1, facts={}, outputs=[])
    for _ in range(2):
        start.output(str(tmp_path), str(Ref("dataset", "links", "1" * 64)))
    (found,) = read_starts(str(tmp_path)).all
    assert found == start and len(found.outputs) == 1
