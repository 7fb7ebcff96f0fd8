"""Bad input: one clear message that names the thing and the remedy, status 2, and nothing that a later run would take
for complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import SMALL, Workspace, digests
from tests.flipped import flip
from tests.ports import free_port

SOURCE = "sources.0.source.uri"
ONE_SOURCE = "laion2B-multi"


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check for status 2, one line that names every part, a remedy, and no traceback."""
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Remedy: " in errors[0], done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    for part in parts:
        assert part in errors[0], f"{part!r} is not in {errors[0]!r}"


@pytest.fixture()
def part(line: Workspace, tmp_path: Path) -> Path:
    """Return a copy of one source's only part."""
    folder = tmp_path / "crawl"
    shutil.copytree(line.path / f".demo/cache/crawl/{ONE_SOURCE}", folder)
    return next(folder.glob("*.parquet"))


def curate(line: Workspace, lake: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return line.job("curate", "curate", f"lake={lake}", *overrides)


def test_a_truncated_part(line: Workspace, part: Path, tmp_path: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])
    done = curate(line, tmp_path / "lake", f"{SOURCE}={part}")
    refused(done, str(part), "source part")
    assert digests(tmp_path / "lake") == {}


def test_a_missing_column(line: Workspace, part: Path, tmp_path: Path) -> None:
    table = pq.read_table(part)
    column = next(name for name in table.column_names if name.upper() == "URL")
    pq.write_table(table.drop_columns([column]), part)
    refused(curate(line, tmp_path / "lake", f"{SOURCE}={part}"), str(part), "lacks column 'URL'")
    assert digests(tmp_path / "lake") == {}


def test_an_empty_source(line: Workspace, part: Path, tmp_path: Path) -> None:
    refused(curate(line, tmp_path / "lake", f"{SOURCE}={tmp_path}/nothing/*.parquet"), f"{tmp_path}/nothing/*.parquet")
    pq.write_table(pq.read_table(part).slice(0, 0), part)
    one = f"sources=[{{source: {{name: {ONE_SOURCE}, uri: {part}, preset: laion-base}}}}]"
    refused(curate(line, tmp_path / "lake", one), ONE_SOURCE)
    assert digests(tmp_path / "lake") == {}


def test_an_unknown_language(line: Workspace, tmp_path: Path) -> None:
    done = curate(line, tmp_path / "lake", "language.languages=[en, xx]", "language.thresholds={en: 0.5}")
    refused(done, "xx", "labels of the language model")


def test_every_link_dead(line: Workspace, tmp_path: Path, images: str) -> None:
    dead = {host: f"127.0.0.1:{free_port()}" for host in json.loads(images.partition("=")[2])}
    done = curate(line, tmp_path / "lake", f"download.connect_to={json.dumps(dead)}")
    refused(done, "dataset images", "none was accepted", "connect ")
    assert set(digests(tmp_path / "lake")) == {"candidates", "links"}  # no empty version of images


def test_no_space_left(line: Workspace, tmp_path: Path, images: str) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root and `unshare -m`")
    lake = tmp_path / "lake"
    lake.mkdir()
    config = "jobs/configs/demo/curate.yaml"
    job = [
        sys.executable,
        "-m",
        "jobs.curate",
        "--config",
        config,
        "execution.backend=inline",
        f"lake={lake}",
        images,
    ]
    quoted = " ".join(f"'{word}'" for word in job)
    # One command in one mount: full disk, then room, then the same again.
    script = (
        f"mount -t tmpfs -o size=6m none {lake} && head -c 5000000 /dev/zero > {lake}/ballast;"
        f"{quoted}; echo status $?; rm {lake}/ballast; mount -o remount,size=512m {lake};"
        f"{quoted} >&2; echo status $?; cat {lake}/datasets/images/head.json"
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        cwd=line.path,
        env={**os.environ, **line.env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "status 2" in done.stdout and done.stdout.count("status 0") == 1, done.stdout + done.stderr[-3000:]
    assert "ENOSPC" in done.stderr and "Remedy: free space" in done.stderr, done.stderr[-3000:]
    assert digests(line.lake)["images"] in done.stdout


def test_prompts_with_a_bad_row(line: Workspace, tmp_path: Path) -> None:
    lines = (line.path / ".demo/out/prompts.jsonl").read_text().splitlines()
    bad = tmp_path / "prompts.jsonl"
    bad.write_text("\n".join([*lines[:2], json.dumps({**json.loads(lines[2]), "language": "x!"}), *lines[3:]]))
    before = digests(line.lake)
    strict = (f"generate.prompts.file={bad}", "generate.prompts.strict=true")
    done = line.job("generate", "generate", *strict, *SMALL["generate"])
    refused(done, str(bad), "row 3", "language", "'x!'")
    assert digests(line.lake) == before


def test_a_wrong_model_is_refused(line: Workspace, tmp_path: Path) -> None:
    refused(line.job("generate", "generate", "generate.model.digest=0123456789", *SMALL["generate"]), "0123456789")
    refused(
        line.job("generate", "generate", f"generate.model={{folder: {tmp_path}}}", *SMALL["generate"]),
        str(tmp_path),
        "model_index.json",
    )
    done = line.job(
        "train", "quality", "train.run=from-nothing", "train.start.checkpoint=no-such-run", *SMALL["quality"]
    )
    refused(done, "no-such-run")


@pytest.fixture()
def copied(line: Workspace, tmp_path: Path) -> Path:
    """Return a copy of the finished lake, to be damaged."""
    lake = tmp_path / "lake"
    shutil.copytree(line.lake, lake, ignore=shutil.ignore_patterns("mlflow*", "mlartifacts", "tracking", "runs"))
    return lake


def test_an_export_with_a_flipped_byte_is_refused(line: Workspace, copied: Path) -> None:
    folder = next((copied / "exports/demo-guidance").glob("step-*"))
    flip(next((folder / "unet").glob("*.safetensors")))
    done = line.job("generate", "generate", f"lake={copied}", "generations=again", *SMALL["generate"])
    refused(done, folder.name, "damaged")


def test_a_checkpoint_with_a_flipped_byte_gives_way_to_the_one_before(line: Workspace, copied: Path) -> None:
    newest = sorted((copied / "checkpoints/demo-alignment").glob("step-*"))[-1]
    digest = json.loads((newest / "COMPLETE.json").read_text())["digest"]
    flip(newest / "unet.safetensors")
    done = line.job("train", "alignment", f"lake={copied}", *SMALL["alignment"][:3], "samples=null")
    assert done.returncode == 0, done.stdout + done.stderr
    assert newest.name in done.stdout + done.stderr and "SHA-256" in done.stdout + done.stderr
    assert json.loads((newest / "COMPLETE.json").read_text())["digest"] == digest  # trained again, bit for bit


def test_another_config_or_stage_under_the_same_name_is_refused(line: Workspace, copied: Path) -> None:
    lake = f"lake={copied}"
    done = line.job("train", "alignment", lake, *SMALL["alignment"], "train.steps=9", "train.optimizer.lr=1e-5")
    refused(done, "demo-alignment", "lr")
    done = line.job("train", "quality", lake, *SMALL["quality"], "train.run=demo-guidance", "train.steps=9")
    refused(done, "demo-guidance", "guidance")


def test_a_damaged_shard_is_found_and_made_again_alone(line: Workspace, copied: Path, images: str) -> None:
    shard = sorted((copied / "datasets/images/shards").glob("*.parquet"))[0]
    others = {path: path.stat().st_mtime_ns for path in shard.parent.glob("*.parquet") if path != shard}
    flip(shard)
    found = line.run("-m", "altdiffusion.cli", "dataset", "verify", "images", "--lake", str(copied))
    assert found.returncode != 0 and shard.name in found.stdout + found.stderr
    refused(line.job("encode", "encode", f"lake={copied}", "latents=again"), shard.name, "damaged")
    shard.unlink()
    done = curate(line, copied, images)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(copied)["images"] == digests(line.lake)["images"] and shard.exists()
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_mlflow_unreachable(line: Workspace, tmp_path: Path, images: str) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    refused(curate(line, tmp_path / "lake", images, f"tracking.uri={uri}"), uri)
    assert digests(tmp_path / "lake") == {}


def test_ray_unreachable(line: Workspace, tmp_path: Path, images: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = curate(line, tmp_path / "lake", images, "execution.backend=ray", f"execution.address={address}")
    refused(done, address)
    assert digests(tmp_path / "lake") == {}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("train.global_batch=100", ("global_batch", "100", "multiple of 64")),
        ("train.optimizer.lrr=1", ("train.optimizer.lrr", "did you mean train.optimizer.lr")),
        ("train.stage=finetune", ("train.stage", "'finetune'", "alignment")),
        ("train.caption_drop=2", ("caption_drop", "2")),
    ],
)
def test_an_invalid_config(line: Workspace, change: str, parts: tuple[str, ...]) -> None:
    refused(line.job("train", "alignment", change, "--dry-run"), "alignment.yaml", *parts)
