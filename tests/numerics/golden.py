"""Losses of 100 updates of each stage on the small model.

    python -m tests.numerics.golden --renew

writes them to golden_losses.json next to this file, under the key of this machine's arithmetic. Renew them only with a
change that is meant to change the numbers, and state that in its commit.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

from altdiffusion.training.launch_local import run_local
from tests import distillation_lake, training_lake

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 100
STAGES = {
    "alignment": {"trainable": "kv"},
    "quality": {"trainable": "all", "start": {"checkpoint": "golden-alignment"}},
    "guidance": {"trainable": "all", "caption_drop": 0.1, "start": {"checkpoint": "golden-quality"}},
}


def arithmetic() -> str:
    """Return what float32 results may depend on: torch's version, its kernels, the processor, by which MKL chooses."""
    kernels = f"{torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"
    return f"torch {torch.__version__}, {kernels}, {_processor()}"


def _processor() -> str:
    """Return vendor, family and model, as the kernel names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    stated = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    return " ".join(stated.get(key, "unknown").strip() for key in ("vendor_id", "cpu family", "model"))


def losses(root: Path) -> dict[str, list[float]]:
    """Return the float32 losses of each stage's updates, each stage started from the one before."""
    torch.set_num_threads(1)
    lake = training_lake.make_lake(root)
    found = {}
    for stage, changes in STAGES.items():
        recorder = training_lake.Recorder()
        fresh = {"caption_drop": 0.0, "steps": STEPS, "checkpoint_every": STEPS, "log_every": 1}
        config = training_lake.config(lake, run=f"golden-{stage}", stage=stage, key=None, **{**fresh, **changes})
        run_local(config, lake, reporter=recorder)
        found[stage] = [report.loss for report in recorder.reports]
    pairs = distillation_lake.make_lake(root / "pairs")
    recorder = training_lake.Recorder()
    config = distillation_lake.config(pairs, key=None, steps=STEPS, checkpoint_every=STEPS, log_every=1)
    run_local(config, pairs, reporter=recorder)
    return {"distillation": [report.loss for report in recorder.reports], **found}


def main() -> None:
    if sys.argv[1:] != ["--renew"]:
        sys.exit(f"usage: python -m tests.numerics.golden --renew   (writes {FILE.name})")
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        known[arithmetic()] = losses(Path(folder))
    FILE.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{FILE.name}: renewed for {arithmetic()}")


if __name__ == "__main__":
    main()
