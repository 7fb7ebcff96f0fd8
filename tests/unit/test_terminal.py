"""What reaches the terminal: the lines of native libraries, and the text of strangers."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from altdiffusion import cli
from altdiffusion.execution.progress import Progress
from altdiffusion.terminal import control, print_any_text, visible, without_noise
from jobs import generate
from jobs.harness import main

HOSTILE = "x\x1b]0;title\x07\x1b[2J\rerror: forged\x9b31m\u202egnp"
"""Sets a title, clears the screen, begins the line again, colours, and turns the direction."""


def test_marked_lines_are_left_out_and_all_others_stay(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), without_noise(b"NOISE"):
        os.write(2, b"first\na NOISE line\nlast\n")
        raise KeyError
    os.write(2, b"NOISE outside\n")
    assert capfd.readouterr().err == "first\nlast\nNOISE outside\n"


def test_control_characters_are_written_as_json_writes_them() -> None:
    shown = visible(HOSTILE)
    assert shown == r"x\u001b]0;title\u0007\u001b[2J\u000derror: forged\u009b31m\u202egnp"
    assert json.loads(f'"{shown}"') == HOSTILE
    kept = "tab\tline\nالعربية \u200f\u200c ไทย 日本語"
    assert visible(kept) == kept
    assert visible("\r10 %") == "\r10 %"
    assert visible("a\r\nb") == "a\nb"


def test_no_verb_and_no_job_prints_a_control_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = ["--lake", str(tmp_path)]
    assert cli.main(["dataset", "show", HOSTILE, *lake]) == 2
    assert cli.main(["lineage", "up", HOSTILE, *lake]) == 2
    (tmp_path / "c.yaml").write_text(json.dumps({"lake": str(tmp_path), HOSTILE: 1}))
    assert main(generate.JOB, ["--config", str(tmp_path / "c.yaml")]) == 2
    assert main(generate.JOB, ["--config", str(tmp_path / HOSTILE)]) == 2
    captured = capsys.readouterr()
    assert "title" in captured.err
    assert visible(captured.out + captured.err) == captured.out + captured.err


def test_our_own_controls_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    print_any_text()
    print_any_text()  # twice is once
    control(stream, "\x1b[K")
    print("\x1b[K", file=stream)
    Progress("download").begin(2)
    assert written.getvalue().startswith(b"\x1b[K\\u001b[K\n\r[download] 0/2 units")
    assert written.getvalue().endswith(b"\x1b[K")
