"""Log lines as JSON: whatever prints, logs or warns, each line is one object, and nothing in it is secret."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.execution.progress import Progress
from altdiffusion.monitoring.identity import Identity, adopt, making
from altdiffusion.monitoring.json_logs import JsonLogs, _Handler
from jobs import generate
from jobs.harness import main
from tests import generation_lake


@contextlib.contextmanager
def written() -> Iterator[io.StringIO]:
    """Yield a stream in place of standard output and error, which are JSON within the block."""
    stream = io.StringIO()
    adopt(Identity(job="train", run="r", rank=3))
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        with JsonLogs() as logs:
            logs.start()
            yield stream
        assert sys.stderr is stream
    adopt(Identity())


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_print_is_one_object_with_its_level_and_place() -> None:
    with written() as stream:
        print("two\nlines", "here")
        print("error: it broke. Remedy: fix it", file=sys.stderr)
        with making("u7"):
            print("[x] WARNING: odd \x1b]0;title\x07 日本", end="\n")
        print("no end", end="")
        print("\r\rlast\r", end="\n")
        print()
        first, second, third, fourth = objects(stream.getvalue())
        assert (first["message"], first["level"]) == ("two\nlines here", "info")
        assert (first["job"], first["run"], first["rank"]) == ("train", "r", 3)
        assert "unit" not in first
        assert second["level"] == "error"
        assert (third["level"], third["unit"]) == ("warning", "u7")
        assert third["message"].endswith("日本")
        assert fourth["message"] == "last"
        assert stream.getvalue().isascii()
        assert "\x1b" not in stream.getvalue()


def test_what_libraries_log_and_warn_of_is_an_object() -> None:
    with written() as stream:
        logging.getLogger("some.library").warning("odd %s", "thing")
        logging.getLogger("some.library").info("not shown, as without JSON")
        own = logging.getLogger("with.handler")
        handler = logging.StreamHandler(sys.stderr)
        own.addHandler(handler)
        own.error("once")
        own.removeHandler(handler)
        sys.stderr.write(warnings.formatwarning("old", FutureWarning, "file.py", 7))  # pytest shows them otherwise
        try:
            raise KeyError("oops")
        except KeyError:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        lines = objects(stream.getvalue())
        assert [line["level"] for line in lines[:3]] == ["warning", "info", "warning"]
        assert lines[0]["message"] == "some.library: odd thing"
        assert "FutureWarning: old" in lines[2]["message"]
        assert "KeyError" in "".join(line["message"] for line in lines[3:])


def test_credentials_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with written() as stream:
        monkeypatch.setenv("SOME_TOKEN", "tiger-lily-9")
        print("see https://me:pass@host/ and tiger-lily-9", file=sys.stderr)
        assert objects(stream.getvalue())[0]["message"] == "see https://***@host/ and ***"


def test_threads_do_not_mix_their_lines() -> None:
    with written() as stream:

        def talk(number: int) -> None:
            for _ in range(200):
                print(f"thread {number}", "a" * 50)

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = objects(stream.getvalue())
        assert len(lines) == 800
        assert {line["message"] for line in lines} == {f"thread {number} {'a' * 50}" for number in range(4)}


def test_a_progress_line_is_not_redrawn() -> None:
    with written() as stream:
        progress = Progress("download", rows_name="images")
        progress.begin(2)
        progress.advance(5, 4)
        with progress:
            pass
        assert all(line["message"].startswith("[download]") for line in objects(stream.getvalue()))


def test_a_job_writes_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=2)
    config = tmp_path / "g.yaml"
    config.write_text(
        f"lake: {lake}\ngenerations: drawn\nexecution: {{backend: inline, log_format: json}}\n"
        f"generate: {{model: {{folder: {lake}/models/base}}, prompts: {{file: {lake}/prompts.jsonl}}, steps: 2}}\n"
    )
    assert main(generate.JOB, ["--config", str(config), "--dry-run"]) == 0
    assert main(generate.JOB, ["--config", str(config), "--dry-run", "generate.steps=-1"]) == 2
    monkeypatch.setenv("ALTDIFFUSION_LOG_FORMAT", "json")
    assert main(generate.JOB, ["--config", str(tmp_path / "none.yaml")]) == 2  # before any config was read
    with pytest.raises(SystemExit):
        main(generate.JOB, ["--no-such-option"])
    captured = capsys.readouterr()
    lines = objects(captured.out) + objects(captured.err)
    assert {line["job"] for line in lines} == {"generate"}
    assert [line["message"][:17] for line in lines if line["level"] == "error"][:1] == [
        "error: config " + str(config)[:3]
    ]
    broken = replace(generate.JOB, plan=lambda config: 1 / 0)
    with contextlib.redirect_stderr(io.StringIO()) as stream, pytest.raises(ZeroDivisionError):
        try:
            main(broken, ["--config", str(config)])
        except ZeroDivisionError:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            raise
    logging.getLogger().handlers = [one for one in logging.getLogger().handlers if not isinstance(one, _Handler)]
    (line,) = objects(stream.getvalue())  # a defect's traceback
    assert (line["level"], line["job"], line["run"]) == ("error", "generate", "generate")
    adopt(Identity())
    monkeypatch.setenv("ALTDIFFUSION_LOG_FORMAT", "xml")
    with pytest.raises(SystemExit):
        main(generate.JOB, ["--config", str(config)])
    assert "ALTDIFFUSION_LOG_FORMAT: 'xml' is neither text nor json" in capsys.readouterr().err
