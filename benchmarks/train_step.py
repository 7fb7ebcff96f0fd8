"""One training step: ours next to a plain diffusers-style loop, each optimisation off and on.

    python -m benchmarks.train_step [--repeats 9] [--threads 1] [--compile] [--cases K/V-256,whole-256]
    python -m benchmarks.train_step --profile [--cases K/V-256]

Without Ray. On a CPU a small UNet of Stable Diffusion 2.1's blocks, 16 x 16 latents for 256 and 32 x 32 for 512, in
float32; on a GPU Stable Diffusion 2.1's UNet and XLM-R large at their real sizes with random weights, in bf16. `plain`
does what diffusers' train_text_to_image does in a step: same models, batch and precision, the same parameters frozen.

The loops take turns, one step each, in an order that is turned round every time; figures are medians, ratios are
medians of the ratios of one turn, so that other load on the machine hurts all alike; the interval holds the median with
at least 95 % and assumes no distribution (it needs 6 turns). On a CPU time is that of the CPU (seconds of the process),
with one thread by default. Memory is the peak of a process of its own above what it held before it built the models; on
a GPU, of the allocator.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.training.reporting.memory import peak_bytes
from altdiffusion.training.reporting.peak import Peak, find_peak
from benchmarks import training
from benchmarks.intervals import interval, ratios, shown
from benchmarks.train_profile import print_profile
from benchmarks.training import Case, Contender, Size

Make = Callable[[Size, Case, torch.device], Contender]
MEMORY_STEPS = 3
WEIGHED = ("ours", "plain", "bare", "not lean", "compiled", "compiled, CUDA graphs")
"""Contenders whose memory is measured; that of the others is as ours."""


def variants(device: torch.device, size: Size, case: Case, compiled: bool) -> dict[str, Make]:
    """Return the contenders by name: ours, the plain loop, the bare arithmetic, and ours with one thing changed."""
    last = device.type == "cuda"
    found: dict[str, Make] = {
        "ours": training.ours,
        "plain": training.plain,
        "bare": training.bare,
        "AdamW not fused": training.with_plain_optimizer,
        "averages one by one": training.with_plain_ema,
        "pads one by one": lambda s, c, d: training.ours(s, c, d, pads_once=False),
        "not lean": lambda s, c, d: training.ours(s, c, d, lean=False),
        "eager attention": lambda s, c, d: training.ours(s, c, d, attention="eager"),
        f"channels_last {'off' if last else 'on'}": lambda s, c, d: training.ours(s, c, d, channels_last=not last),
    }
    if compiled:
        found["compiled"] = lambda s, c, d: training.ours(s, c, d, compile=True)
    if compiled and last:
        found["compiled, CUDA graphs"] = lambda s, c, d: training.ours(s, c, d, compile=True, cuda_graphs=True)
    return found


def seconds_of(contender: Contender, device: torch.device) -> float:
    """Return the seconds of one step."""
    if device.type == "cpu":
        began = time.process_time()
        contender.step()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    contender.step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(contenders: list[Contender], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each contender in each turn; two turns before them do not count."""
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats + 2):
        for contender in contenders if turn % 2 else reversed(contenders):
            spent = seconds_of(contender, device)
            if turn >= 2:
                found[contender.name].append(spent)
    return found


def ratio(of: list[float], to: list[float]) -> float:
    """Return how many times as fast `of` is as `to`, the median of the turns."""
    return statistics.median(ratios(of, to))


def memory_of(name: str, case: Case) -> float:
    """Return the MiB above the start, in a process of its own."""
    printed = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.train_step",
            "--memory",
            name,
            "--cases",
            case.name,
            "--batch",
            str(case.batch),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(json.loads(printed.stdout.splitlines()[-1])["mib"])


def print_memory(make: Make, size: Size, case: Case, device: torch.device) -> None:
    import diffusers.optimization
    import diffusers.training_utils  # noqa: F401  (what one loop imports and the other does not is not its memory)
    from diffusers import DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import AltCLIPTextModel  # noqa: F401

    gc.collect()
    if device.type == "cpu":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again from what is held now
    before = 0 if device.type == "cuda" else peak_bytes(device)
    contender = make(size, case, device)
    for _ in range(MEMORY_STEPS):
        contender.step()
    print(json.dumps({"mib": (peak_bytes(device) - before) / 2**20}))


def measure(size: Size, case: Case, device: torch.device, repeats: int, compiled: bool, peak: Peak) -> list[float]:
    """Print the lines of one case; return the seconds of our steps."""
    made = []
    for name, make in variants(device, size, case, compiled).items():
        contender = make(size, case, device)
        contender.name = name
        made.append(contender)
    flops = made[0].flops
    spent = in_turn(made, repeats, device)
    for contender in made:
        name, median = contender.name, statistics.median(spent[contender.name])
        rate = case.batch / median
        memory = f"{memory_of(name, case):,.0f}" if name in WEIGHED else ""
        print(
            f"{case.name:10}{name:34}{rate:>10.2f}{rate * flops / peak.tflops / 1e12:>8.1%}{memory:>10}"
            f"{ratio(spent[name], spent['plain']):>11.3f}{ratio(spent['ours'], spent[name]):>11.3f}",
            flush=True,
        )
    print(f"{case.name:10}ours to plain: {shown(ratios(spent['ours'], spent['plain']))}")
    own = [ours / bare - 1 for ours, bare in zip(spent["ours"], spent["bare"], strict=True)]
    low, high = interval(own)
    print(f"{case.name:10}the loop's own: {statistics.median(own):.1%} over bare [{low:.1%}, {high:.1%}], to reach 3 %")
    return spent["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU")
    parser.add_argument("--batch", type=int, help="images per step, instead of each case's own")
    parser.add_argument("--cases", default="K/V-256,whole-256,whole-512")
    parser.add_argument("--compile", action="store_true", help="the compiled network too (minutes to compile)")
    parser.add_argument("--profile", action="store_true", help="print where the time of our step goes instead")
    parser.add_argument("--memory", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(arguments.threads)
    size = training.full() if device.type == "cuda" else training.small()
    own = {"K/V-256": 64, "whole-256": 64, "whole-512": 16} if device.type == "cuda" else {}
    known = [
        Case(
            trainable=trains,
            resolution=side,
            batch=arguments.batch or own.get(f"{label}-{side}", {256: 8, 512: 2}[side]),
        )
        for label, trains, side in (("K/V", "kv", 256), ("whole", "all", 256), ("whole", "all", 512))
    ]
    cases = [case for case in known if case.name in arguments.cases.split(",")]
    if arguments.memory is not None:
        (case,) = cases
        print_memory(variants(device, size, case, True)[arguments.memory], size, case, device)
        return
    if arguments.profile:
        for case in cases:
            print(f"{size.name}, {case.name}, {case.batch} images per step")
            print_profile(training.ours(size, case, device), device)
        return
    peak = find_peak(device, size.precision)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {arguments.threads} thread(s)"
    batch = ", ".join(f"{case.name}: {case.batch}" for case in cases)
    print(f"{size.name} on {where}, {size.precision}, a step of {batch}; MFU of {peak.tflops:.3g} TFLOP/s, {peak.name}")
    print(f"{'':10}{'':34}{'images/s':>10}{'MFU':>8}{'MiB':>10}{'to plain':>11}{'ours to it':>11}")
    spent = {case.name: measure(size, case, device, arguments.repeats, arguments.compile, peak) for case in cases}
    if {"K/V-256", "whole-256"} <= spent.keys():
        pace = statistics.median(spent["whole-256"]) / statistics.median(spent["K/V-256"])
        print(f"a K/V step is {pace:.2f} times as fast as a whole step, to reach 1.4")
    print(f"Ray imported: {'ray' in sys.modules}")


if __name__ == "__main__":
    main()
