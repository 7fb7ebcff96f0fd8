"""Architectural promises, each held by a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from altdiffusion.execution.capacity import fits
from altdiffusion.execution.units import Resources
from pipelines.common import Workers
from tests.readme import readme_commands

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
JOBS = ("import", "curate", "score", "encode", "parallel", "train", "generate", "evaluate", "measure")


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **env}
    )


def test_platform_is_a_source_root_and_the_standard_library_is_intact() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    code = "import platform; print(platform.__file__); print(platform.python_version())"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.splitlines()[0]


def test_import_layers_hold() -> None:
    done = run(str(BIN / "lint-imports"), "--no-cache", PYTHONPATH="platform:.")
    assert done.returncode == 0, done.stdout + done.stderr


def test_format_lint_and_types() -> None:
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = run(str(BIN / command[0]), *command[1:])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_jobs_are_thin() -> None:
    for job in JOBS:
        lines = (ROOT / f"jobs/{job}.py").read_text().splitlines()
        assert len(lines) < 80, f"jobs/{job}.py has {len(lines)} lines"


def test_importing_a_module_starts_nothing_heavy() -> None:
    """Layers below execution stay importable without Ray and MLflow, where networks run on a bare GPU machine."""
    code = (
        "import sys\n"
        "import altdiffusion.config, altdiffusion.storage.dataset, altdiffusion.lineage.graph\n"
        "import altdiffusion.diffusion.noise, altdiffusion.diffusion.objective, altdiffusion.training.loop\n"
        "import altdiffusion.curation.links.select_work, altdiffusion.generation.prompts\n"
        "print([m for m in ('ray', 'mlflow', 'img2dataset') if m in sys.modules])"
    )
    done = run(sys.executable, "-c", code, PYTHONPATH="platform")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_imports_nothing_heavy() -> None:
    """A verb imports what it works with when it runs, so that `--help` and a mistyped option take no seconds."""
    heavy = ("torch", "transformers", "diffusers", "mlflow", "ray", "pyarrow", "numpy", "PIL")
    code = (
        "import sys\n"
        "from altdiffusion.cli import parser\n"
        "parser().format_help()\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = run(sys.executable, "-c", code, PYTHONPATH="platform")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_of_jobs_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "diffusers", "mlflow", "ray", "pyarrow", "numpy", "PIL", "altdiffusion")
    code = (
        "import contextlib, io, runpy, sys\n"
        f"for job in {JOBS}:\n"
        "    sys.argv = [job, '--help']\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        runpy.run_module(f'jobs.{job}', run_name='__main__')\n"
        "    assert f'python -m jobs.{job} ' in shown.getvalue(), job\n"
        f"    print([m for m in {heavy} if m in sys.modules])"
    )
    done = run(sys.executable, "-c", code, PYTHONPATH="platform:.")
    assert done.stdout.split() == ["[]"] * len(JOBS), done.stdout + done.stderr


CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "jobs/configs").rglob("*.yaml"))


def test_there_is_a_config_for_every_job_and_stage() -> None:
    names = {str(path.relative_to("jobs/configs")) for path in CONFIGS}
    assert {"m18/parallel.yaml", "m18/distillation.yaml"} <= names
    stages = ("curate", "encode", "alignment", "quality", "guidance", "generate", "evaluate")
    assert {f"{size}/{stage}.yaml" for size in ("demo", "m18") for stage in stages} <= names


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_dry_runs(config: Path, tmp_path: Path) -> None:
    """In an empty folder: what is elsewhere is not read, and reported so; what should be here and is missing is an
    error by name, next to the plan: the job would stop at it."""
    stem = config.stem.split("-")[0]
    job = stem if stem in JOBS else "train"
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", "--config", str(ROOT / config), "--dry-run"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"},
    )  # fmt: skip
    assert "fingerprint" in done.stdout and "plan" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    if config.parent.name == "m18":
        assert done.returncode == 0 and "not looked at" in done.stdout, done.stdout + done.stderr
    else:
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Remedy: " in done.stderr


def test_the_runtime_environment_points_at_the_source_root() -> None:
    environment = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    assert environment["working_dir"] == "."
    assert environment["env_vars"]["PYTHONPATH"] == "platform"


def test_cluster_yaml_passes_rays_validation() -> None:
    """8 nodes of 8 GPUs, a curation group, token authentication in every start command."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    a100 = cluster["available_node_types"]["a100"]
    assert a100["max_workers"] * a100["resources"]["GPU"] == 64
    for start in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_the_cluster_starts_nodes_for_generation_and_stops_them() -> None:
    """A worker of jobs/configs/m18/generate.yaml fits on a node type that grows from 0 to its whole pool."""
    settings = yaml.safe_load((ROOT / "jobs/configs/m18/generate.yaml").read_text())["workers"]
    workers = Workers(**settings)
    one = Resources(num_cpus=workers.cpus, num_gpus=workers.gpus)
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    suited = {name: t for name, t in cluster["available_node_types"].items() if fits(one, [t["resources"]])}
    assert list(suited) == ["a100"] and suited["a100"]["min_workers"] == 0
    has = suited["a100"]["resources"]
    per_node = int(min(has["GPU"] // workers.gpus, has["CPU"] // workers.cpus))
    assert suited["a100"]["max_workers"] * per_node == workers.max
    assert cluster["max_workers"] >= suited["a100"]["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 30


def test_every_command_of_the_readme_exists() -> None:
    """Every make target, module, config and script named in a README command is really there."""
    commands = readme_commands()
    assert len(commands) >= 8
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        for target in re.findall(r"\bmake ([a-z]+)", command):
            assert re.search(rf"^{target}:", makefile, flags=re.M), command
        for module in re.findall(r"python -m ([\w.]+)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command
        for file in re.findall(r"(?:jobs|deploy|benchmarks|demo)/[\w./-]+\.(?:yaml|jsonl|py)", command):
            assert (ROOT / file).exists(), command
        for first in re.findall(r"altdiffusion ([a-z]+)", command):
            done = run(sys.executable, "-m", "altdiffusion.cli", first, "--help", PYTHONPATH="platform")
            assert done.returncode == 0, command


def test_no_test_is_skipped_for_a_package_that_make_setup_installs() -> None:
    """An environment that lacks one is out of date: the test has to fail there, or it may never run at all."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (one for name in ("demo", "dev", "s3") for one in given["optional-dependencies"][name])
    installed = {canonical(Requirement(text).name) for text in [*given["dependencies"], *extras]}
    makers = packages_distributions()
    asked = re.compile(r"(?:importorskip|skipif\(importlib\.util\.find_spec)\(\"(\w+)")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in asked.findall(path.read_text(encoding="utf-8")):
            named = {canonical(one) for one in (name, *makers.get(name, ()))}
            assert not named & installed, f"{path.name} is skipped without {name}"


def test_no_path_of_one_machine_and_no_registry_in_tracked_files() -> None:
    listed = run("git", "ls-files").stdout.splitlines()
    if not listed:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(root|home/[a-z]+)/|registry\.npmjs|pypi\.org|files\.pythonhosted")
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt"} and path.is_file() and path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8")), name
