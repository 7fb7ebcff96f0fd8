"""Jobs of two users on one head with a token, submitted from another folder; one is stopped and submitted again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import verify
from tests import generation_lake
from tests.chaos.ray_cluster import workers
from tests.e2e.test_line import BIN, head, wait_for

__all__ = ["head"]
PROMPTS = 240


def config_of(lake: str, folder: Path) -> str:
    tree = {
        "lake": lake,
        "generations": "drawn",
        "generate": {
            "model": {"folder": f"{lake}/models/base"}, "prompts": {"file": f"{lake}/prompts.jsonl"},
            "steps": 4, "guidance_scale": 2.0, "batch_rows": 4, "rows_per_unit": 4,
        },
        "workers": {"max": 1, "cpus": 1},
    }  # fmt: skip
    path = folder / "generate.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def submit(config: str, folder: Path, env: dict[str, str], *more: str) -> str:
    """Submit from a folder that has nothing of the repository; return the id of the job."""
    command = [str(BIN / "altdiffusion"), "submit", "generate", "--config", config, *more]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False)
    found = re.search(r"submitted (\S+)", done.stdout)
    assert found and (done.returncode == 0), done.stdout[-3000:] + done.stderr[-3000:]
    return found[1]


def ask(env: dict[str, str], path: str, data: bytes | None = None) -> Any:
    token = Path(env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/{path}", data, {"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_users_and_a_stop_that_leaves_nothing(head: dict[str, str], tmp_path: Path) -> None:
    env = {**os.environ, **head}
    wait_for(head["RAY_API_SERVER_ADDRESS"], Path(head["RAY_AUTH_TOKEN_PATH"]).read_text())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lakes, configs = {}, {}
    for user in ("ann", "bob"):
        (tmp_path / user).mkdir()
        lakes[user] = generation_lake.make_lake(tmp_path / user, prompts=PROMPTS)
        configs[user] = config_of(lakes[user], tmp_path / user)
    jobs = {user: submit(configs[user], elsewhere, env, "--no-wait") for user in lakes}

    def records(user: str) -> int:
        return len(list(Path(lakes[user]).glob("datasets/drawn/ledger/*/*.json")))

    ends = time.monotonic() + 600
    while records("ann") < 3:
        assert ask(head, jobs["ann"])["status"] in ("PENDING", "RUNNING") and time.monotonic() < ends
        time.sleep(0.1)
    assert ask(head, f"{jobs['ann']}/stop", b"")["stopped"]
    while ask(head, jobs["ann"])["status"] not in ("STOPPED", "FAILED", "SUCCEEDED"):
        assert time.monotonic() < ends
        time.sleep(0.5)
    done = records("ann")
    assert ask(head, jobs["ann"])["status"] == "STOPPED" and 3 <= done < PROMPTS // 4
    assert not list(Path(lakes["ann"]).glob("datasets/drawn/versions/*"))  # what is not whole is not there

    while ask(head, jobs["bob"])["status"] in ("PENDING", "RUNNING"):  # the other user's goes on to its end
        assert time.monotonic() < ends
        time.sleep(0.5)
    assert ask(head, jobs["bob"])["status"] == "SUCCEEDED"
    for _ in range(100):
        if not workers():
            break
        time.sleep(0.2)
    assert workers() == []  # no actor of either is left

    submit(configs["ann"], elsewhere, env)  # follows it, and fails unless it succeeds
    versions = {user: Lake(lake).version("drawn") for user, lake in lakes.items()}
    assert versions["ann"].rows == versions["bob"].rows == PROMPTS
    hashes = {user: sorted(one.read(["image_sha256"])["image_sha256"].to_pylist()) for user, one in versions.items()}
    assert hashes["ann"] == hashes["bob"]
    for lake in lakes.values():
        assert verify(Lake(lake).dataset("drawn")).damages == ()
