"""`altdiffusion doctor`: each check finds a planted fault, names it, and its remedy is one that works."""

from __future__ import annotations

import email.utils
import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.doctor import all_reduce, clock, disks, lake, limits, nodes, versions
from altdiffusion.doctor.gpus import check_gpus
from altdiffusion.doctor.line import FAIL, OK, WARN, Line, guarded
from altdiffusion.doctor.machine import Wanted
from altdiffusion.doctor.metadata_service import check_metadata
from altdiffusion.doctor.resolver import check_resolver
from altdiffusion.doctor.summary import merged
from altdiffusion.doctor.token import check_token
from altdiffusion.doctor.tracking_server import check_tracking
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from tests.ports import free_port

Answer = Callable[[str, dict[str, str]], tuple[int, str]]


class Web:
    """A server on loopback whose answers a test gives."""

    def __init__(self, answer: Answer, date: str = "") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path, {key.lower(): value for key, value in self.headers.items()})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            do_HEAD = do_GET

            def date_time_string(self, timestamp: Any = None) -> str:
                return date or super().date_time_string(timestamp)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = ("127.0.0.1", self.server.server_address[1])
        self.uri = f"http://127.0.0.1:{self.address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    made: list[Web] = []

    def make(answer: Answer, date: str = "") -> Web:
        made.append(Web(answer, date))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def by_name(lines: Any) -> dict[str, Line]:
    found = {line.name: line for line in lines}
    for line in found.values():
        assert (line.level == OK) == (not line.remedy), line
    return found


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "auth_token"
    path.write_text("0" * 64)
    path.chmod(0o600)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


def token_line() -> Line:
    return by_name(guarded("ray token", lambda: check_token(("127.0.0.1", free_port()))))["ray token"]


def test_a_token_that_others_can_read_fails_and_the_remedy_works(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_line().level == WARN and token_line().remedy == "export RAY_AUTH_MODE=token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert token_line().level == OK
    token.chmod(0o644)
    found = token_line()
    assert found.level == FAIL and "mode 0644" in found.found
    command = found.remedy.partition("`")[2].partition("`")[0]
    subprocess.run(command, shell=True, check=True)
    assert token_line().level == OK
    token.unlink()
    assert token_line().level == FAIL and "is missing" in token_line().found
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token_line().level == FAIL and "runs code" in token_line().found


@pytest.mark.parametrize(("status", "level"), [(401, OK), (403, OK), (200, FAIL)])
def test_a_head_that_takes_jobs_without_a_token_fails(
    token: Path, web: Callable[..., Web], status: int, level: str
) -> None:
    found = by_name(check_token(web(lambda path, _: (status, path)).address))
    assert found["job API"].level == level


def test_a_disk_that_is_full_missing_or_read_only_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not/yet"))
    found = by_name(disks.check_disks(str(tmp_path / "spill"), 0, 0))
    assert [found[f"disk {what}"].level for what in ("temporary", "cache", "spill")] == [OK, OK, FAIL]
    subprocess.run(found["disk spill"].remedy.partition("(")[2].rstrip(")"), shell=True, check=True)
    assert by_name(disks.check_disks(str(tmp_path / "spill"), 0, 0))["disk spill"].level == OK
    assert by_name(disks.check_disks(None, 0, 1e9))["disk temporary"].level == WARN
    full = by_name(disks.check_disks(None, 1e9, 1e9))["disk temporary"]
    assert full.level == FAIL and "TMPDIR" in full.remedy
    monkeypatch.setattr(disks.os, "access", lambda *_: False)
    assert "cannot be written" in by_name(disks.check_disks(None, 0, 0))["disk cache"].found


def test_few_open_files_and_little_shared_memory_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, level in ((1024, FAIL), (20000, WARN), (65536, OK), (resource.RLIM_INFINITY, OK)):
        monkeypatch.setattr(limits.resource, "getrlimit", lambda _, soft=soft: (soft, 10**6))
        found = by_name(limits.check_limits())["open files"]
        assert found.level == level and (level == OK or found.remedy == "ulimit -n 65536")
    assert by_name(limits.check_limits(str(tmp_path / "none")))["shared memory"].level == FAIL
    monkeypatch.setattr(limits, "LEAST_SHARED_MEMORY_GIB", 1e9)
    assert "--shm-size" in by_name(limits.check_limits(str(tmp_path)))["shared memory"].remedy


@pytest.mark.parametrize(
    ("text", "level", "problem"),
    [
        ("nameserver 10.0.0.2\nnameserver 10.0.0.3\n", OK, ""),
        ("# nameserver 10.0.0.2\nsearch x\n", FAIL, "names none"),
        ("nameserver 127.0.0.53\noptions edns0\n", WARN, "a stub of this machine"),
        ("nameserver 10.0.0.2\nnameserver ::1\n", WARN, "a stub of this machine"),
        ("nameserver fe80::1%eth0\n", WARN, "alone"),
    ],
)
def test_a_resolver_too_small_for_downloads_is_named(tmp_path: Path, text: str, level: str, problem: str) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    found = by_name(check_resolver(str(tmp_path / "resolv.conf")))["resolver"]
    assert found.level == level and problem in found.found
    assert by_name(check_resolver(str(tmp_path / "none")))["resolver"].level == FAIL


def test_a_metadata_service_that_answers_a_plain_request_fails(
    web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    def google(path: str, headers: dict[str, str]) -> tuple[int, str]:
        return (200, "") if headers.get("metadata-flavor") == "Google" else (403, "")

    for answer, level in ((lambda *_: (200, "ami-id"), FAIL), (lambda *_: (401, ""), OK), (google, WARN)):
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", web(answer).uri)
        assert by_name(check_metadata())["metadata"].level == level
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert by_name(check_metadata())["metadata"].found == "cannot be reached from here"


def test_a_clock_that_is_off_is_named(web: Callable[..., Web]) -> None:
    for offset, level in ((0, OK), (-60, WARN), (3600, FAIL)):
        date = email.utils.formatdate(time.time() + offset, usegmt=True)
        assert by_name(clock.check_clock(web(lambda *_: (403, ""), date).uri))["clock"].level == level
    assert by_name(clock.check_clock(web(lambda *_: (200, ""), "yesterday").uri))["clock"].level == WARN
    assert by_name(clock.check_clock(f"http://127.0.0.1:{free_port()}"))["clock"].level == WARN


def test_the_lake_is_left_as_it_was(tmp_path: Path) -> None:
    found = by_name(lake.check_lake(str(tmp_path), mib=1))
    assert [found[name].level for name in ("put-if-absent", "lake latency", "lake write", "lake read")] == [OK] * 4
    assert os.listdir(tmp_path) == []


def test_a_store_that_does_not_refuse_the_second_writer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(uri: str, data: bytes) -> bool:
        files.write_atomic(uri, data)
        return True

    def refuse(*_: Any) -> bool:
        raise AltDiffusionError("storage x", "refuses this user (403)", "check the credentials")

    monkeypatch.setattr(files, "put_if_absent", careless)
    assert by_name(lake.check_lake(str(tmp_path), mib=1))["put-if-absent"].level == FAIL
    with monkeypatch.context() as kept:
        kept.setattr(files, "remove_tree", lambda *_, **__: refuse())
        assert "403" in by_name(lake.check_lake(str(tmp_path), mib=1))["lake delete"].found
    shutil.rmtree(tmp_path / os.listdir(tmp_path)[0])
    whole = files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda uri: whole(uri)[:1000])
    assert by_name(lake.check_lake(str(tmp_path), mib=1))["lake read"].level == FAIL

    monkeypatch.setattr(files, "put_if_absent", refuse)
    (line,) = guarded("lake", lambda: lake.check_lake(str(tmp_path)))
    assert (line.level, line.found, line.remedy) == (FAIL, "storage x refuses this user (403)", "check the credentials")
    assert os.listdir(tmp_path) == []


def mlflow(anonymous: int, as_admin: int = 200, any_host: bool = False) -> Answer:
    def answer(path: str, headers: dict[str, str]) -> tuple[int, str]:
        if path == "/version":
            return (200 if any_host or "doctor.invalid" not in headers["host"] else 403), version("mlflow")
        return (as_admin if "authorization" in headers else anonymous), "{}"

    return answer


def test_an_mlflow_server_without_passwords_fails_unless_it_is_on_this_machine(
    web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    open_server = web(mlflow(200, any_host=True))
    assert {line.level for line in check_tracking(open_server.uri)} == {OK}
    locked = web(mlflow(401))
    found = by_name(check_tracking(locked.uri))
    assert found["mlflow auth"].level == FAIL and "none is set" in found["mlflow auth"].found
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-password")
    assert by_name(check_tracking(locked.uri))["mlflow auth"].level == OK
    refusing = by_name(check_tracking(web(mlflow(401, as_admin=401)).uri))["mlflow auth"]
    assert refusing.level == FAIL and "canary" not in str(refusing)
    monkeypatch.setattr("altdiffusion.doctor.tracking_server._is_loopback", lambda _: False)
    found = by_name(check_tracking(open_server.uri))
    assert found["mlflow auth"].level == FAIL and found["mlflow hosts"].level == WARN
    levels = [line.level for line in check_tracking(locked.uri)]
    assert levels == [OK, WARN]  # the password is right, but travels in plain text


def test_an_mlflow_server_that_is_not_there_or_knows_another_name_fails(web: Callable[..., Web]) -> None:
    for uri in ("mlruns", "sqlite:///mlflow.db", "ftp://x", "http://"):
        assert by_name(check_tracking(uri))["mlflow"].level == FAIL
    assert "cannot be reached" in by_name(check_tracking(f"http://127.0.0.1:{free_port()}"))["mlflow"].found
    assert "--allowed-hosts" in by_name(check_tracking(web(mlflow(403)).uri))["mlflow"].remedy
    with pytest.raises(AltDiffusionError, match="is invalid"):
        list(check_tracking("http://127.0.0.1:port"))


def test_versions_are_held_against_the_lock_and_the_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0"}
    monkeypatch.setattr(versions, "installed", lambda: have)
    monkeypatch.setattr(versions, "_required", lambda: ["ray[data]>=2.60,<2.61", "torch>=2.10", "x>=1; extra == 'y'"])
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a comment==1\nray==2.60.0 \\\n    --hash=sha256:00\nTorch==2.13.0\nother==1\n")
    assert {line.level for line in versions.check_versions(str(pins))} == {OK}
    have["torch"] = "2.9.0"
    found = by_name(versions.check_versions(str(pins)))
    assert found["requirements"].found == "torch 2.9.0, not >=2.10" and found["requirements"].level == FAIL
    assert found["lock"].found == "1 differ: torch 2.9.0, not 2.13.0" and found["lock"].level == WARN
    del have["torch"]
    assert "torch is missing" in by_name(versions.check_versions(str(pins)))["requirements"].found
    pins.write_text("ray\n")
    with pytest.raises(AltDiffusionError, match="has no line name==version"):
        list(versions.check_versions(str(pins)))


def test_gpus_that_torch_does_not_see_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("altdiffusion.doctor.gpus._of_driver", lambda: ["580.95"] * 8)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA none" in by_name(check_gpus())["gpus"].found and by_name(check_gpus())["gpus"].level == FAIL
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "8 here, of which torch sees 2" in by_name(check_gpus())["gpus"].found
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    assert by_name(check_gpus())["gpus"].found.startswith("8 x NVIDIA A100, driver 580.95, torch")


def test_a_sum_is_measured_and_a_slow_or_failed_one_is_named() -> None:
    assert all_reduce.line(12.0, 8, "nccl", "GPUs").level == OK
    assert "NCCL_DEBUG=INFO" in all_reduce.line(0.2, 8, "nccl", "GPUs").remedy
    assert all_reduce.line("timed out", 2, "gloo", "nodes").level == FAIL


def test_nodes_with_other_versions_another_lake_or_the_same_finding_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"python": "3.11.9", "ray": "2.60.0", "pillow": "12"}
    monkeypatch.setattr(nodes, "installed", lambda: here)
    assert by_name(nodes._same_versions({"a": here, "b": dict(here)}))["same versions"].level == OK
    assert by_name(nodes._same_versions({"a": here, "b": here | {"pillow": "11"}}))["same versions"].level == WARN
    other = by_name(nodes._same_versions({"a": here, "b": here | {"ray": "2.59.0"}}))["same versions"]
    assert other.level == FAIL and other.found == "ray 2.59.0 on b, 2.60.0 here"
    monkeypatch.setattr(nodes, "check_machine", lambda wanted: [Line(OK, "lake", str(wanted.lake))])
    with nodes._mark(str(tmp_path)) as mark:
        assert [line.level for line in nodes._look(Wanted(str(tmp_path)), mark)[0]] == [OK]
        (found, failed), _ = nodes._look(Wanted(str(tmp_path)), f"{mark}-elsewhere")
    assert found.found == "None" and failed.level == FAIL and os.listdir(tmp_path) == []
    many = [Line(OK, "disk", f"{place} GiB", node=f"n{place}") for place in range(3)]
    many += [Line(WARN, "clock", "9 s", "ntp", f"n{place}") for place in (0, 2)] + [
        Line(FAIL, "node", "gone", "look", "n1")
    ]
    printed = [" ".join(str(line).split()) for line in merged(many)]
    assert printed == [
        "ok 3 nodes disk 0 GiB; similar on the others", "warn 2 nodes clock 9 s (ntp)", "FAIL n1 node gone (look)"
    ]  # fmt: skip


def test_the_verb_exits_with_1_where_a_line_fails(
    tmp_path: Path, web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    token: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(versions, "_required", list)
    server = web(mlflow(200, any_host=True))
    command = ["doctor", "--lake", str(tmp_path), "--tracking-uri", server.uri, "--json"]
    status = main(command)
    lines = json.loads(capsys.readouterr().out)
    assert status == any(line["level"] == FAIL for line in lines)
    names = {line["name"] for line in lines}
    assert {"versions", "gpus", "ray token", "open files", "resolver", "metadata", "put-if-absent", "clock"} <= names
    token.chmod(0o644)
    assert main(command[:3]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("FAIL  ray token ") and "chmod 600" in line]
    assert printed[-1].endswith("FAIL")
    assert main(["doctor", "--nodes", "--address", "nowhere"]) == 2
    assert "is not of the form host:port" in capsys.readouterr().err
