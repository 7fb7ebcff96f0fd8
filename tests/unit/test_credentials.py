"""Credentials are named in configs, filled in when they are used, and in no output."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion import credentials
from altdiffusion.cli import main
from altdiffusion.config import load_config
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.cluster import check_token_file
from altdiffusion.storage import files
from pipelines.generate import GenerateJobConfig

ROOT = Path(__file__).resolve().parents[2]
PLAIN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8, max_size=20).map(lambda t: f"Zq{t}")
SHAPES = (
    "http://bob:{}@host:5000/x", "https://{}@host/x", "s3://KEY:{}@bucket/folder", "postgresql+psycopg2://u:{}@db/m",
    "https://store.example/part.parquet?X-Amz-Signature={}&x=1", "https://a.example/?sig={}", "gs://b/x?access_token={}",
    "mysql://u@db/x?password={}", "https://a.example/p?AWSAccessKeyId={}&Expires=1", "ftp://u:{}@host",
    "HTTPS://bob:{}@host", "http://:{}@host", "https://bob%3A{}@host", "git+https://{}@host/x", "redis://:a@{}@host",
    "s3://KEY:wJalr/XUtn+{}@bucket/folder", "http://bob:p#a?{}@host:80/x", "s3://${{env:KEY}}:a/{}@bucket",
    "https://a.example/#access_token={}", "https://a.example/?access-key={}", "https://a.example/?auth={}",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{}%3BUID%3Du", "Authorization: Bearer {}",
    "{{'Authorization': 'Basic {}'}}", "proxy-authorization={}", "hf_{0}{0}{0}{0}", "ghp_{0}{0}{0}{0}",
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@given(secret=PLAIN)
def test_no_text_shows_what_an_address_holds(shape: str, secret: str) -> None:
    text = shape.format(secret)
    assert credentials.holds_credential(text)
    assert secret not in credentials.redact(f"could not open {text!r}: {text}")
    error = AltDiffusionError(text, f"cannot be opened ({text})", f"correct {text}")
    assert secret not in f"{error}{error!r}{error.what}{error.problem}{error.remedy}"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder", "abfs://container@account.dfs.core.windows.net/x", "/plain/path@v1",
        "dataset:links@01234567",
        "hf://owner/name@" + "0" * 40, "http://host:5000", "http://u:${env:PW}@host", "https://${file:/run/s}@host",
        "signal=1", "https://a.example/?design=2&sigma=3&monkey=4", "https://a.example/a:b@c",
        "https://host:8080/a@b", "http://[::1]:80/@a", "github://owner:name@main/file", "ssh://git@host/x",
        "${env:A}:b@c",
        "https://a.example/?key=1&passwords=2&author=me", "az://container@account", "mailto:me@a.example", "hf_hub",
        "https://a.example/?token=${env:TOKEN}", "the author: Basic colours, a token of love", "s3://bucket/a:b@2x.png",
    ],
)  # fmt: skip
def test_what_holds_none_is_left_alone(text: str) -> None:
    assert not credentials.holds_credential(text) and credentials.redact(text) == text


def test_a_placeholder_is_filled_in_and_its_value_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_BOB", "open-sesame")
    (tmp_path / "key").write_text("a-key-in-a-file\n")
    text = f"s3://${{file:{tmp_path}/key}}:${{env:OF_BOB}}@bucket"
    assert credentials.reveal(text) == "s3://a-key-in-a-file:open-sesame@bucket"
    assert credentials.redact("AuthError: open-sesame / a-key-in-a-file") == "AuthError: *** / ***"
    for missing in ("${env:NOT_SET_ANYWHERE}", f"${{file:{tmp_path}/none}}"):
        with pytest.raises(credentials.MissingCredential, match=r"NOT_SET_ANYWHERE|none"):
            credentials.reveal(missing)


def test_an_address_that_a_lake_names_draws_no_secret_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_BOB", "open-sesame")
    (tmp_path / "key").write_text("a-key-in-a-file")
    for uri in (
        "http://evil.example/${env:OF_BOB}",
        f"http://evil.example/${{file:{tmp_path}/key}}",
        "s3://${env:OF_BOB}@b",
    ):
        with pytest.raises(AltDiffusionError, match=r"tracking\.uri only") as caught:
            files.exists(uri)
        assert "open-sesame" not in str(caught.value) and "a-key-in-a-file" not in str(caught.value)


def test_secrets_of_the_environment_are_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray_token")  # a place, not a secret
    error = AltDiffusionError("x", "403 for hf_abcdefgh, wJalrXUtnFEMI", "see /run/secrets/ray_token")
    assert str(error) == "x: 403 for ***, ***. Remedy: see /run/secrets/ray_token"


def test_a_secret_is_hidden_however_a_library_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_EVE", "p@ss/w\\rd \u00e9")
    assert credentials.reveal("http://eve:${env:OF_EVE}@host").startswith("http://eve:p@ss")
    for written in ("p@ss/w\\rd \u00e9", "p%40ss%2Fw%5Crd%20%C3%A9", "p%40ss/w%5Crd%20%C3%A9", "p%40ss%2Fw%5Crd+%C3%A9",
                 repr("p@ss/w\\rd \u00e9"), "p@ss/w\\\\rd \\u00e9"):  # fmt: skip
        assert "rd" not in credentials.redact(f"login with {written} was refused").replace("hardly", ""), written


def test_names_that_hold_a_credential_and_those_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY"):
        assert credentials.is_secret_name(name)
    for name in (
        "PWD",
        "OLDPWD",
        "XAUTHORITY",
        "SSH_AUTH_SOCK",
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "prompt_tokens_x",
    ):
        assert not credentials.is_secret_name(name)
    key = tmp_path / "account.json"
    key.write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))  # where it is, which messages may state
    assert credentials.redact(f"file {key} cannot be read") == f"file {key} cannot be read"


CONFIG = "lake: {lake}\ngenerate:\n  model: {{folder: m}}\n  prompts: {{file: p.jsonl}}\n"


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=http://bob:hunter2@host", "lake=s3://KEY:hunter2@bucket", "generate.prompts.file=https://h/p?token=hunter2",
        "tracking.password=hunter2", "tracking.uri.password=hunter2", "execution={token: hunter2}", "generate.steps=http://b:hunter2@h",
    ],
)  # fmt: skip
def test_a_credential_in_a_config_is_refused_without_showing_it(tmp_path: Path, override: str) -> None:
    file = tmp_path / "generate.yaml"
    file.write_text(CONFIG.format(lake=tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "jobs.generate", "--config", str(file), override, "--dry-run"],
        cwd=ROOT, env={"PYTHONPATH": "platform:.", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "hunter2" not in done.stdout + done.stderr and "error: " in done.stderr


def test_a_named_credential_is_taken_and_printed_as_its_name(tmp_path: Path) -> None:
    file = tmp_path / "generate.yaml"
    file.write_text(CONFIG.format(lake=tmp_path))
    config = load_config(GenerateJobConfig, str(file), ["tracking.uri=http://bob:${env:OF_BOB}@host"])
    assert config.tracking.uri == "http://bob:${env:OF_BOB}@host"


def test_the_command_line_shows_no_credential(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["lineage", "up", "links"], ["dataset", "list"], ["lineage", "rebuild", "--tracking-uri", "x"]):
        for lake in ("nowhere://KEY:hunter2@bucket", "memory://KEY:hunter2@bucket"):
            assert main([*command, "--lake", lake]) == 2
            printed = capsys.readouterr()
            assert "hunter2" not in printed.out + printed.err and "${env:NAME}" in printed.err


def test_a_traceback_and_a_log_line_show_no_credential(tmp_path: Path) -> None:
    script = (
        "import logging, sys\nfrom altdiffusion.credentials import guard_outputs\nguard_outputs()\n"
        "logging.getLogger('x').warning('100 %% of %s', 'http://b:hunter2@h')\n"
        "logging.getLogger('x').warning('50 % of http://b:hunter2@h')\n"
        "raise ValueError('http://b:hunter2@h')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONPATH": "platform"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "hunter2" not in done.stderr.replace(script.splitlines()[-1], "")
    assert "100 % of http://***@h" in done.stderr and "50 % of http://***@h" in done.stderr
    assert logging.getLogRecordFactory() is not None


def test_a_token_that_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 32)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for mode in (0o644, 0o640, 0o604):
        token.chmod(mode)
        with pytest.raises(AltDiffusionError, match=f"chmod 600 {token}"):
            check_token_file()
    token.chmod(0o600)
    check_token_file()
