"""The main line: in one process, as the demo on Ray, and by `ray job submit` - the same digests each time."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import CANARY, CONCEPTS, SMALL, Workspace, digests, make_workspace
from tests.ports import free_port
from tests.ray_folder import ray_folder
from tests.readme import readme_commands

BIN = Path(sys.executable).parent


def test_the_line_leaves_everything_it_promises(line: Workspace) -> None:
    assert set(digests(line.lake)) >= {"candidates", "links", "images", "latents", "prompts", "generations"}
    for run in ("demo-alignment", "demo-quality", "demo-guidance"):
        assert list((line.lake / "checkpoints" / run).glob("step-*/COMPLETE.json"))
        assert list((line.lake / "exports" / run).glob("step-*/model_index.json"))
    assert (line.path / ".demo/out/grid.png").stat().st_size > 10_000
    table = json.loads((line.path / ".demo/out/evaluation.json").read_text())
    assert [state["state"] for state in table["states"]] == ["base", "swapped", "alignment", "quality", "guidance"]


def test_nothing_that_the_jobs_left_shows_a_secret_of_their_environment(line: Workspace) -> None:
    left = [path for path in line.path.rglob("*") if path.is_file()]  # which follows no link to the code
    assert len(left) > 100
    assert [str(path) for path in left if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in "".join(line.printed)


def test_the_curation_agrees_with_what_was_planted(line: Workspace) -> None:
    done = line.run("-m", "demo.truth", "--lake", str(line.lake), "--dataset", "images", "--cache", ".demo/cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_lineage_reaches_from_an_image_to_source_rows_and_back(line: Workspace) -> None:
    drawn = next((line.lake / "datasets/generations/images").glob("*.png"))
    up = line.run("-m", "altdiffusion.cli", "lineage", "up", drawn.stem[:16], "--lake", str(line.lake))
    assert up.returncode == 0, up.stderr
    for part in (
        *("demo-guidance", "demo-quality", "demo-alignment"),
        *("dataset latents", "dataset images", "dataset links", "source laion2B"),
    ):
        assert part in up.stdout, f"{part} is not in\n{up.stdout}"
    down = line.run("-m", "altdiffusion.cli", "lineage", "down", "dataset:links", "--lake", str(line.lake))
    assert "dataset generations" in down.stdout, down.stdout + down.stderr


def test_the_readmes_line_draws_with_a_run_and_prints_where_it_came_from(line: Workspace) -> None:
    line_of_readme = next(one for one in readme_commands() if "altdiffusion generate" in one)
    arguments = shlex.split(line_of_readme)[1:]
    place = arguments.index("--lake")
    arguments[place + 1] = str(line.lake)
    done = line.run("-m", "altdiffusion.cli", *arguments, "--steps", "2", "--out", str(line.path / "drawn"))
    assert done.returncode == 0, done.stderr
    assert len(list((line.path / "drawn").glob("0?-*.png"))) == 2
    for part in ("demo-guidance", "demo-alignment", "source laion2B"):
        assert part in done.stdout, done.stdout


def test_a_second_run_finds_everything_there(line: Workspace, images: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in line.lake.rglob("*.parquet")}
    for job, config in (("curate", "curate"), ("train", "guidance"), ("evaluate", "evaluate")):
        done = line.job(job, config, *([images] if job == "curate" else []), *SMALL.get(config, []))
        assert done.returncode == 0 and "already there" in done.stdout, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in line.lake.rglob("*.parquet")} == before


def test_a_stock_pipeline_opens_and_runs_the_export(line: Workspace) -> None:
    import torch
    from diffusers import DiffusionPipeline

    folder = next((line.lake / "exports/demo-guidance").glob("step-*"))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    names = {part: type(getattr(pipeline, part)).__name__ for part in ("unet", "text_encoder", "vae")}
    assert names == {"unet": "UNet2DConditionModel", "text_encoder": "AltCLIPTextModel", "vae": "AutoencoderKL"}
    draw = torch.Generator().manual_seed(0)
    image = pipeline("ラクダ", num_inference_steps=2, height=32, width=32, generator=draw).images[0]
    assert image.size == (32, 32)
    assert not list(Path(folder).rglob("*.bin")) and not list(Path(folder).rglob("*.pt"))


@pytest.mark.timeout(1800)
def test_the_demo_on_ray_makes_the_same_datasets(line: Workspace, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "demo")
    (workspace.path / ".demo").mkdir()
    (workspace.path / ".demo/cache").symlink_to(line.path / ".demo/cache")
    changes = [
        part for config, overrides in SMALL.items() for text in overrides for part in ("--set", f"{config}:{text}")
    ]
    with ray_folder() as ray_tmp:
        done = workspace.run("-m", "demo", "--concepts", str(CONCEPTS), *changes, timeout_s=900, RAY_TMPDIR=ray_tmp)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        again = workspace.run("-m", "demo", "--concepts", str(CONCEPTS), *changes, timeout_s=300, RAY_TMPDIR=ray_tmp)
    assert again.returncode == 0 and again.stdout.count("already there") == 8, again.stdout + again.stderr
    data = ("candidates", "links", "images", "latents", "prompts")
    ours, theirs = digests(workspace.lake), digests(line.lake)
    assert {name: ours[name] for name in data} == {name: theirs[name] for name in data}
    for heading in ("lineage", "Image grid", "MLflow", "mean of 17 others"):
        assert heading in done.stdout


@pytest.fixture()
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run `ray start --head` with token authentication; yield the environment that reaches it."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    dashboard = free_port()
    with ray_folder() as ray_tmp:
        env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": ray_tmp,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"),
                *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--temp-dir={ray_tmp}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=200000000"),
                # Ray's own are fixed, and a head that finds the agent's taken never starts a job
                *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
            ],
            env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, token: str) -> None:
    """Wait until a job is accepted: the head answers some seconds before the agent that starts jobs runs."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/jobs/", data=b'{"entrypoint": "true"}', headers=headers)
    for _ in range(120):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=30).close()
            return
        time.sleep(1)
    raise TimeoutError(address)


@pytest.mark.timeout(1800)
def test_every_job_runs_unchanged_by_ray_job_submit(
    line: Workspace, images: str, head: dict[str, str], tmp_path: Path
) -> None:
    address = head["RAY_API_SERVER_ADDRESS"]
    wait_for(address, Path(head["RAY_AUTH_TOKEN_PATH"]).read_text())
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)

    lake = tmp_path / "lake"
    demo = line.path / ".demo"
    where = {
        "curate": [f"sources.{i}.source.uri={demo}/cache/crawl/{name}/*.parquet" for i, name in enumerate(SOURCES)],
        "curate-judge": [f"sources.0.source.uri={demo}/cache/crawl/judge-artists/*.parquet"],
        "encode": [
            f"encode.vae={demo}/models/base-en/vae",
            f"encode.tokenizer={demo}/models/text-encoder-m18/tokenizer",
        ],
        "alignment": [
            f"train.start.base={demo}/models/base-en",
            f"train.start.text_encoder={demo}/models/text-encoder-m18",
            "samples.workers={max: 1}",  # on a pool of the cluster, not in the driver
            f"samples.prompts.file={demo}/out/prompts.jsonl",
            f"samples.fonts={demo}/cache/fonts",
        ],
        "generate": [
            "generate.model.run=demo-alignment",
            f"generate.prompts.file={demo}/out/prompts.jsonl",
            f"sheet.file={tmp_path}/grid.png",
            f"sheet.fonts={demo}/cache/fonts",
        ],
        "evaluate": [
            f"cases={demo}/out/cases.jsonl",
            f"labels={demo}/out/labels.parquet",
            f"autoencoder={demo}/models/base-en/vae",
            f"output={tmp_path}/evaluation",
            f"states=[{{name: base, model: {{folder: {demo}/models/base-en}}}},"
            " {name: alignment, model: {run: demo-alignment}}]",
        ],
    }
    for job, config in (
        ("curate", "curate"),
        ("curate", "curate-judge"),
        ("encode", "encode"),
        ("train", "alignment"),
        ("generate", "generate"),
        ("evaluate", "evaluate"),
    ):
        own = [*where[config], *SMALL.get(config, []), *([images] if job == "curate" else [])]
        root = Path(__file__).resolve().parents[2]
        file = f"jobs/configs/demo/{config}.yaml"
        if config == "encode":  # from another folder
            command = [str(BIN / "altdiffusion"), "submit", job, f"lake={lake}", *own, "--config", str(root / file)]
        else:
            command = [str(BIN / "ray"), "job", "submit", "--runtime-env", "jobs/runtime_env.yaml", "--"]
            command += ["python", "-m", f"jobs.{job}", "--config", file, f"lake={lake}", *own]
        done = subprocess.run(
            command,
            cwd=tmp_path if config == "encode" else root,
            env={**os.environ, **head},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{config}: {done.stdout[-4000:]}{done.stderr[-2000:]}"
    ours, theirs = digests(lake), digests(line.lake)
    for name in ("candidates", "links", "images", "latents"):
        assert ours[name] == theirs[name], name


SOURCES = ("laion2B-multi", "laion2B-multi-joined", "laion2B-multi-aesthetic", "laion2B-en-aesthetic")
