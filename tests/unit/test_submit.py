"""`altdiffusion submit`: what it refuses before anything is sent, and what it sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from altdiffusion.cli import main, parser
from altdiffusion.execution.submission import working_folder


@pytest.fixture()
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = tmp_path / "c.yaml"
    path.write_text("lake: s3://bucket/lake\n")
    return str(path)


def test_overrides_may_stand_anywhere(config: str) -> None:
    given = parser().parse_args(["submit", "train", "a=1", "--config", config, "b=2", "--no-wait", "c.d=[x, y]"])
    assert given.overrides == ["a=1", "b=2", "c.d=[x, y]"] and given.config == config
    with pytest.raises(SystemExit):
        parser().parse_args(["submit", "train", "--config", config, "--typo=2"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "give --cluster cluster.yaml, or --address http://HOST:8265"),
        (["--address", "10.0.0.1:6379"], "10.0.0.1:6379: is not that of a job API"),
        (["--address", "http://127.0.0.1:9"], "job API http://127.0.0.1:9: does not take the job"),
        (["--cluster", "nowhere.yaml"], "cluster file nowhere.yaml: is missing"),
    ],
)
def test_a_cluster_that_is_not_there(
    config: str, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "encode", "--config", config, *more]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "cannot be read"), ("- a", "is not a mapping"), ("a: [", "is not YAML")]
)
def test_a_config_that_cannot_be_one_is_refused_first(
    tmp_path: Path, text: str | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["submit", "encode", "--config", str(path)]) == 2
    assert expected in capsys.readouterr().err


def test_what_is_sent_is_the_package_and_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with working_folder("lake: x\n") as folder:
        sent = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert {"config.yaml", "jobs/train.py", "pipelines/train.py", "altdiffusion/py.typed"} <= sent
    assert not [name for name in sent if "__pycache__" in name or name.startswith(("tests", "docs"))]
