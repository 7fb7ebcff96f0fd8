"""Generation: the job, loops of diffusers' `StableDiffusionPipeline` over the same prompts, and the bare networks.

    python -m benchmarks.generation [--rows 128] [--repeats 5] [--threads 1] [--cases mixed,equal]
    python -m benchmarks.generation --device cuda --real                  without Ray
    python -m benchmarks.generation --real --tiny                               the same lines at tiny sizes, on a CPU

`mixed` prompts have four sizes in a random order, `equal` ones have one size; no two prompts are the same. All draw
with the same weights, precision, steps and guidance. `job` is what a worker does: texts, batches, PNG, spill files,
image files, shards and ledger. `one per call` calls the pipeline for one prompt, `batches` for up to `--batch` prompts
of one size, the best that a user writes; both save PNG files. `bare` is the UNet's and the VAE's time of the same
batches: neither text encoder nor sampler nor PNG.

The contenders take turns, in an order that is turned round every time; the first turn does not count. Figures are
medians, ratios are medians of the ratios of one turn, so that other load on the machine hurts all alike. Rates are of
CPU seconds on a CPU (with the job's threads), and of seconds on a GPU. On a CPU the model is the demo's base, at about
32 x 32 pixels; `--real` has Stable Diffusion 2.1's shapes with random weights, 512 x 512 pixels, 25 steps, bf16.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from altdiffusion.diffusion.quiet import quiet_libraries
from benchmarks import drawing, drawing_job
from benchmarks.drawing import Contender, Row, Scale


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The seconds of one turn."""

    cpu: float
    wall: float


def contenders(scale: Scale, rows: list[Row], settings: dict[str, Any], also: list[str]) -> list[Contender]:
    """Return who draws, by name.

    Args:
        also: settings of `speed` with which the job draws too, such as "deep_cache=3,channels_last=true".
    """
    found = [
        drawing_job.job("job", scale, rows, settings),
        drawing.pipeline_loop("one per call", scale, rows, settings, 1),
        drawing.pipeline_loop("batches", scale, rows, settings, settings["batch_rows"]),
        drawing.bare("bare", scale, rows, settings),
    ]
    for text in also:
        speed = {key: yaml.safe_load(value) for key, value in (one.split("=") for one in text.split(","))}
        own = replace(scale, bundle=copy.deepcopy(scale.bundle))  # such settings change the networks in place
        found.append(drawing_job.job(f"job, {text}", own, rows, settings | {"speed": speed}))
    return found


def timed(draw: Callable[[], None], device: str) -> Spent:
    """Return the seconds that drawing takes."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    draw()
    if device == "cuda":
        torch.cuda.synchronize()
    return Spent(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)


def in_turn(who: list[Contender], repeats: int, device: str) -> dict[str, list[Spent]]:
    """Return the seconds of each contender in each turn, without the first one."""
    found: dict[str, list[Spent]] = {one.name: [] for one in who}
    for turn in range(repeats + 1):
        for one in who if turn % 2 else reversed(who):
            with tempfile.TemporaryDirectory() as folder:
                spent = timed(one.ready(Path(folder)), device)
            if turn:
                found[one.name].append(spent)
    return found


def measure(case: str, scale: Scale, rows: list[Row], arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Print the lines of one case."""
    found = contenders(scale, rows, settings, arguments.also)
    who = [one for one in found if one.name.split(",")[0] in arguments.who.split(",")]
    spent = in_turn(who, arguments.repeats, arguments.device)
    counted = {
        name: [one.wall if arguments.device == "cuda" else one.cpu for one in turns] for name, turns in spent.items()
    }
    for name, turns in spent.items():
        ours = "" if name.startswith("job") else f"{_ratio(counted['job'], counted[name]):.2f}"
        cpu, wall = (statistics.median(values) for values in zip(*((one.cpu, one.wall) for one in turns), strict=True))
        rate = len(rows) / statistics.median(counted[name])
        print(f"{case:8}{name:44}{rate:>10.2f}{cpu:>10.2f}{wall:>10.2f}{ours:>12}", flush=True)
    for name in counted:
        if name.startswith("job,"):
            print(f"{case:8}{name} is {_ratio(counted[name], counted['job']):.2f} times as fast as without")


def _ratio(of: list[float], to: list[float]) -> float:
    """Return how many times as fast `of` is as `to`, the median of the turns."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--real", action="store_true", help="Stable Diffusion 2.1's shapes with random weights")
    parser.add_argument("--tiny", action="store_true", help="with --real: its blocks at a tenth of their width")
    parser.add_argument("--rows", type=int, help="prompts; 128, or 64 with --real, or 6 with --tiny")
    parser.add_argument("--batch", type=int, help="images per batch; 32, or 16 with --real, or 4 with --tiny")
    parser.add_argument("--steps", type=int, help="20, or 25 with --real, or 3 with --tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32; bfloat16 on a GPU")
    parser.add_argument("--also", action="append", default=[], help="the job with such settings of speed too")
    parser.add_argument("--who", default="job,one per call,batches,bare", help="the contenders")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU")
    parser.add_argument("--cases", default="mixed,equal")
    arguments = parser.parse_args()
    quiet_libraries()
    kind = "tiny" if arguments.tiny else "real" if arguments.real else "demo"
    rows, batch, steps = {"tiny": (6, 4, 3), "real": (64, 16, 25), "demo": (128, 32, 20)}[kind]
    count, batch, steps = arguments.rows or rows, arguments.batch or batch, arguments.steps or steps
    dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    torch.set_num_threads(arguments.threads)
    settings = {
        "steps": steps, "guidance_scale": 7.5, "batch_rows": batch, "dtype": dtype, "device": arguments.device,
        "threads": arguments.threads,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scale = (
            drawing.demo_scale(Path(folder), arguments.device, getattr(torch, dtype))
            if kind == "demo"
            else drawing.real_scale(Path(folder), arguments.device, getattr(torch, dtype), tiny=arguments.tiny)
        )
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} thread(s)"
    print(f"{scale.name} on {where}, {dtype}; {count} prompts, {steps} steps, batches of up to {batch}")
    print(f"{'':52}{'images/s':>10}{'CPU s':>10}{'wall s':>10}{'job to it':>12}")
    for case in arguments.cases.split(","):
        measure(case, scale, drawing.rows_of(scale, count, mixed=case == "mixed"), arguments, settings)
    print("to reach: mixed 1.5 of one per call, equal 0.95 of bare; on a GPU 10 images/s, 20 with deep_cache")
    print(f"load {os.getloadavg()[0]:.1f}; Ray imported: {'ray' in sys.modules}")


if __name__ == "__main__":
    main()
