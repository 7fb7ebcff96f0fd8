"""The benchmark for a GPU, run whole at tiny shapes on a CPU where Ray cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_cases
from benchmarks.gpu_cases import Bench, Line

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_every_case_has_a_figure(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('Ray is not installed')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "platform"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path / "found")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "found.json").read_text())
    assert list(report["cases"]) == list(gpu_cases.CASES)
    for name, case in report["cases"].items():
        assert any(line["rate"] for line in case["lines"]), (name, case)
    notes = {line["what"]: line["note"] for line in report["cases"]["attention whole-512"]["lines"]}
    assert "not installed" in notes["xformers"] or "does not run on cpu" in notes["xformers"]
    assert [line["batch"] for line in report["cases"]["batches K/V-256"]["lines"]] == [1, 2]
    table = (tmp_path / "found.md").read_text()
    rows = sum(len(case["lines"]) for case in report["cases"].values())
    assert table.count("\n| ") == rows + 1 and "train K/V-256 | ours | 2 |" in table


def out_of_memory(bench: Bench) -> gpu_cases.Lines:
    yield Line(what="small", batch=1, rate=2.0)
    raise gpu_cases.torch.OutOfMemoryError("CUDA out of memory")


def too_slow(bench: Bench) -> gpu_cases.Lines:
    yield Line(what="first", batch=1, rate=1.0)
    time.sleep(600)


def dies(bench: Bench) -> gpu_cases.Lines:
    os._exit(9)
    yield


def test_a_case_that_fails_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, out of time, killed: what was measured before is kept, and the next case runs."""
    gpu_cases.quiet_libraries()  # it imports for seconds, which are not those of a case
    context = gpu.multiprocessing.get_context("fork")
    cases = {"memory": (60.0, out_of_memory), "slow": (60.0, too_slow), "dead": (60.0, dies)}
    monkeypatch.setattr(gpu_cases, "CASES", cases)
    found = {}
    for name, limit in (("memory", 60.0), ("slow", 2.0), ("dead", 60.0)):
        note = gpu.run(context, name, True, tmp_path / name, limit)
        found[name] = [(line["what"], line["note"]) for line in gpu.read(tmp_path / name, note)]
    assert found["memory"] == [("small", ""), ("the rest", "out of memory")]
    assert found["slow"] == [("first", ""), ("the rest", "stopped after 2 s")]
    assert found["dead"] == [("the rest", "ended with status 9")]
