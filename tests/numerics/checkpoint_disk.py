"""Training with the checkpoints on a disk that is full; test_checkpoints starts it with mounts of its own.

    unshare -m python checkpoint_disk.py LAKE

A tmpfs is mounted over the run's folder. After the checkpoint of step 3 it is given half the room that another one
needs; when two could not be written, it gets enough again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from altdiffusion.training.launch_local import run_local
from tests.training_lake import Recorder, config, file_hashes


def main(lake: str) -> None:
    torch.set_num_threads(1)
    folder = Path(lake) / "checkpoints" / "align"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(folder)], check=True)
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    first = file_hashes(folder / "step-00000003")
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    resize(folder, f"{used * 3 // 2}")

    class Rescue(Recorder):
        def warning(self, text: str) -> None:
            super().warning(text)
            if len(self.warnings) == 2:
                resize(folder, "64M")

    recorder = Rescue()
    last = run_local(config(lake), lake, reporter=recorder)
    for warning in recorder.warnings:
        print("warning:", warning)
    print("first kept:", file_hashes(folder / "step-00000003") == first)
    print("last:", last.step, last.digest)
    print(sorted(path.name for path in folder.iterdir()))


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
