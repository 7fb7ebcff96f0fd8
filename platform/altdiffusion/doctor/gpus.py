"""GPUs: how many, their driver, and whether PyTorch can use them."""

from __future__ import annotations

import glob
import shutil
import subprocess
from collections.abc import Iterator

from altdiffusion.doctor.line import FAIL, OK, Line

TIMEOUT_S = 30.0


def check_gpus() -> Iterator[Line]:
    """Check that PyTorch sees every GPU of this machine."""
    devices = sorted(glob.glob("/dev/nvidia[0-9]*"))
    driver = _of_driver()
    import torch

    cuda = torch.version.cuda
    if not devices and not driver:
        yield Line(OK, "gpus", "none: a CPU node")
        return
    count, present = torch.cuda.device_count(), max(len(devices), len(driver))
    build = f"torch {torch.__version__}, CUDA {cuda or 'none'}"
    if cuda is None:
        remedy = "install PyPI's torch for Linux: pip install -c constraints.txt --force-reinstall torch"
        yield Line(FAIL, "gpus", f"{present} here, but {build}", remedy)
    elif count < present:
        remedy = "run nvidia-smi; a container needs --gpus all, and CUDA_VISIBLE_DEVICES must not hide any"
        yield Line(FAIL, "gpus", f"{present} here, of which torch sees {count} ({build})", remedy)
    else:
        names = sorted({torch.cuda.get_device_name(place) for place in range(count)})
        yield Line(OK, "gpus", f"{count} x {', '.join(names)}, driver {driver[0] if driver else 'unknown'}, {build}")


def _of_driver() -> list[str]:
    """Return the driver's version once per GPU that it lists; none where it is not installed or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
