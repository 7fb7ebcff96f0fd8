"""The line from links to images as its four commands, at a small size; its lake may be anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from altdiffusion.diffusion import models
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from tests import training_lake
from tests.download_lake import HOST, image
from tests.fetch_server import Answer, reply, serving
from tests.source_rows import GOOD

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("curate", "encode", "train", "generate")
DATASETS = ("candidates", "links", "images", "latents", "prompts", "generations")
ROWS, UNIT = 24, 4
"""Images, and how many of them a unit of the download or of the encoding has."""
PROMPTS, DRAWN = 8, 2
"""Images that are generated, and how many of them a unit has."""
STEPS, CHECKPOINT = 12, 4
VOCABULARY = 1_700_000
"""Rows of the text encoder's table of tokens: 109 MB, which s3fs sends in parts (from 100 MiB on)."""


@dataclass(frozen=True)
class WholeLine:
    """What the commands need besides a lake."""

    folder: Path
    port: int
    """Port of the server of the images."""
    execution: Mapping[str, Any] = field(default_factory=lambda: {"backend": "inline"})

    def command(self, job: str, lake: str, *changes: str) -> list[str]:
        """Return the command of a job, whose config is written for it; `changes` are `key=value`."""
        path = self.folder / f"{job}-{files.sha256_hex(lake.encode())[:8]}.yaml"
        path.write_text(yaml.safe_dump(self._config(job) | self._common(lake)))
        return [sys.executable, "-m", f"jobs.{job}", "--config", str(path), *changes]

    def start(self, job: str, lake: str, *changes: str) -> subprocess.Popen[str]:
        """Start the command of a job."""
        environment = {
            **os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }  # fmt: skip
        return subprocess.Popen(
            self.command(job, lake, *changes), cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, job: str, lake: str, *changes: str) -> str:
        """Run the command of a job to its end, and return what it printed.

        Raises:
            AssertionError: its exit status is not 0.
        """
        process = self.start(job, lake, *changes)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{job}: {printed[-4000:]}"
        return printed

    def _common(self, lake: str) -> dict[str, Any]:
        tracking = {"uri": f"sqlite:///{self.folder}/mlflow.db"}  # one for all lakes: to make one takes 5 seconds
        return {"lake": lake, "tracking": tracking, "execution": dict(self.execution)}

    def _config(self, job: str) -> dict[str, Any]:
        base = self.folder / "base"
        if job == "curate":
            source = {
                "name": "s", "uri": f"{self.folder}/links.parquet", "preset": "own",
                "columns": {"url": "url", "caption": "caption"},
            }  # fmt: skip
            select = {"min_side": None, "max_aspect": None, "punsafe_below": None, "pwatermark_below": None}
            download = {
                "image_size": 32, "resize_mode": "center_crop", "encode_format": "png", "encode_quality": 3,
                "min_side": 8, "retries": 0, "rows_per_unit": UNIT,
                "connect_to": {f"{HOST}:80": f"127.0.0.1:{self.port}"}, "allow_private": ["127.0.0.0/8"],
            }  # fmt: skip
            return {"sources": [{"source": source, "select": select}], "download": download}
        if job == "encode":
            of_base = {"vae": f"{base}/vae", "tokenizer": f"{base}/tokenizer", "max_length": training_lake.TOKENS}
            return {"encode": {**of_base, "resolution": 16, "micro_batch": 4, "rows_per_unit": UNIT}}
        if job == "train":
            return {"train": {
                "run": "line", "stage": "alignment", "trainable": "all", "start": {"base": str(base)},
                "datasets": [{"name": "latents"}], "seed": 5, "steps": STEPS, "global_batch": 8, "micro_batch": 4,
                "caption_drop": 0.25, "optimizer": {"lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9},
                "order": {"chunk_rows": 8, "window_chunks": 2}, "checkpoint_every": CHECKPOINT, "keep_last": 2,
                "log_every": 4,
            }}  # fmt: skip
        return {"generate": {
            "model": {"run": "line"}, "prompts": {"file": f"{self.folder}/prompts.jsonl"}, "steps": 2,
            "guidance_scale": 2.0, "batch_rows": DRAWN, "rows_per_unit": DRAWN,
        }}  # fmt: skip


@contextlib.contextmanager
def whole_line(
    folder: Path, *, vocabulary: int = VOCABULARY, missing: int = 0, wait_s: float = 0
) -> Iterator[WholeLine]:
    """Make what the line reads, the links, the prompts and the base model, and serve the images for the block.

    Args:
        missing: every how many-th image the server does not have; 0: it has all.
        wait_s: seconds before the server sends an image.
    """
    rows = [{**GOOD, "url": f"http://{HOST}/{number}.png"} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "links.parquet")
    prompts = [
        {"id": f"p{n}", "language": "de", "prompt": f"word {n}", "seed": n, "width": 16, "height": 16}
        for n in range(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    models.save_bundle(training_lake.bundle(vocabulary=vocabulary), folder / "base")
    with serving() as site:
        served = [number for number in range(ROWS) if not missing or number % missing]
        site.answers = {f"/{number}.png": _late(reply(image(number)), wait_s) for number in served}
        yield WholeLine(folder, site.port)


def _late(answer: bytes, wait_s: float) -> Answer:
    def send(connection: socket.socket) -> None:
        time.sleep(wait_s)
        connection.sendall(answer)

    return send


def results(lake: str) -> dict[str, Any]:
    """Return what must not depend on where a lake is, nor on kills: all digests, of data, model and images."""
    found: dict[str, Any] = {name: Lake(lake).dataset(name).head_digest() for name in DATASETS}
    for step in checkpoints.complete_steps(lake, "line"):
        found[f"checkpoint {step}"] = checkpoints.open_step(lake, "line", step).ref.digest
    for name in files.list_folders(files.join(lake, "exports", "line")):
        found[f"export {name}"] = files.read_json(files.join(lake, "exports", "line", name, "lineage.json"))["content"]
    drawn = Lake(lake).version("generations").read(["image_sha256"])
    return found | {"images drawn": sorted(drawn["image_sha256"].to_pylist())}
