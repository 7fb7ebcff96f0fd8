"""A workspace: the repository's tree by links, with a .demo of its own and a small crawl of eight concepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = 8
SMALL = {
    "alignment": [
        "train.steps=6",
        "train.optimizer.warmup_steps=2",
        "train.checkpoint_every=3",
        "samples.steps=1",
        "samples.every=6",
    ],
    "quality": ["train.steps=4", "train.optimizer.warmup_steps=2"],
    "guidance": ["train.steps=4", "train.optimizer.warmup_steps=2"],
    "generate": ["generate.steps=3"],
    "evaluate": ["sampling.steps=1", "judge.steps=20", "require=null"],
}


CANARY = "canary-of-a-secret"
SECRETS = {
    name: f"{CANARY}-{number}"
    for number, name in enumerate(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_DB_PASSWORD"))
}
"""A secret in the environment of every job; nothing that a job writes or prints may show it."""


@dataclass
class Workspace:
    """Where a test runs commands; `env` is all they see besides this process's environment."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    """The output of all commands."""

    @property
    def lake(self) -> Path:
        return self.path / ".demo/lake"

    def run(self, *arguments: str, timeout_s: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` in the workspace; the caller checks the exit status."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.path,
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        self.printed += [done.stdout, done.stderr]
        return done

    def job(self, job: str, config: str, *overrides: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a job in one process, without Ray."""
        path = f"jobs/configs/demo/{config}.yaml"
        inline = ("execution.backend=inline", *overrides)
        return self.run("-m", f"jobs.{job}", "--config", path, *inline, timeout_s=timeout_s)


def make_workspace(path: Path) -> Workspace:
    """Make a workspace of links to the code, with the environment of a user who has set nothing."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("platform", "pipelines", "jobs", "demo", "pyproject.toml"):
        (path / name).symlink_to(ROOT / name)
    tmp = path / "t"
    tmp.mkdir()
    plain = {"PYTHONPATH": "platform:.", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "TMPDIR": str(tmp)}
    return Workspace(path, {**plain, **SECRETS})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace with packages, crawl, prompts and the base model, not yet curated. Tests copy or read it."""
    workspace = make_workspace(tmp_path_factory.mktemp("e2e"))
    cache = workspace.path / ".demo/cache"
    cache.mkdir(parents=True)
    shared = Path(os.environ["ALTDIFFUSION_DEMO_CACHE"])
    (shared / "npm").mkdir(parents=True, exist_ok=True)
    (cache / "npm").symlink_to(shared / "npm")
    code = (
        "from dataclasses import replace\nfrom demo.line import DEMO, Line\n"
        f"Line(scale=replace(DEMO, concepts={CONCEPTS})).prepare()\n"
    )
    done = workspace.run("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


@pytest.fixture(scope="session")
def images(prepared: Workspace) -> Iterator[str]:
    """Serve the demo's images on a free loopback port; yield the override that points a curation at the server."""
    from demo import server, site

    with server.running(prepared.path / ".demo/cache") as port:
        yield f"download.connect_to={json.dumps(site.connect_to(port))}"


@pytest.fixture(scope="session")
def line(prepared: Workspace, images: str) -> Workspace:
    """Run the whole line once, every job in its own process without Ray; later tests compare with it or damage it."""
    for job, config in (
        ("curate", "curate"),
        ("curate", "curate-judge"),
        ("encode", "encode"),
        ("train", "alignment"),
        ("train", "quality"),
        ("train", "guidance"),
        ("generate", "generate"),
        ("evaluate", "evaluate"),
    ):
        own = [images] if job == "curate" else []
        done = prepared.job(job, config, *own, *SMALL.get(config, []))
        assert done.returncode == 0, f"{config}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return prepared


def digests(lake: Path) -> dict[str, str]:
    """Return the head digest of every dataset in a lake."""
    heads = sorted((lake / "datasets").glob("*/head.json"))
    return {head.parent.name: json.loads(head.read_text())["digest"] for head in heads}
