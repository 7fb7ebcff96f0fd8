"""The cases of `benchmarks.gpu`, each run in a process of its own.

A case is a function that yields lines as it measures them, so that what was measured before an error or a time limit is
kept. What does not fit in memory, or is not installed, is a line as well. Nothing here needs Ray or a lake.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.training.reporting.peak import find_peak
from benchmarks import drawing, training
from benchmarks.intervals import ratios, shown
from benchmarks.training import Case, Contender

BATCHES = {"K/V-256": 64, "whole-256": 64, "whole-512": 16}
GOALS = {"K/V-256": 900.0, "whole-256": 600.0, "whole-512": 150.0}
"""Images per second to reach on an H200."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measurement, or why there is none."""

    what: str
    batch: int | None = None
    rate: float | None = None
    """Images per second."""
    mfu: float | None = None
    gib: float | None = None
    """Peak of what the contender took of the device's memory."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and at which size the cases run."""

    device: torch.device
    tiny: bool

    @property
    def size(self) -> training.Size:
        return training.tiny() if self.tiny else training.full()

    def case(self, trainable: models.Trains, resolution: int, batch: int | None = None) -> Case:
        """Return a case at its usual batch, or at this one; a tiny one has two images."""
        found = Case(trainable=trainable, resolution=resolution, batch=2)
        usual = 2 if self.tiny else BATCHES[found.name]
        return Case(trainable=trainable, resolution=resolution, batch=batch or usual)

    def seconds(self, work: Callable[[], object], times: int = 1) -> float:
        """Return the seconds of one call; the device is waited for before and after all of them."""
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self._wait()
        return (time.perf_counter() - began) / times

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def weighed(self) -> Iterator[list[float]]:
        """Give a list that holds, after the block, the peak in GiB of what the block took; empty on a CPU."""
        found: list[float] = []
        if self.device.type != "cuda":
            yield found
            return
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append((torch.cuda.max_memory_allocated() - before) / 2**30)


Lines = Iterator[Line]


def made(bench: Bench, make: Callable[[], Contender]) -> tuple[Contender, float | None, float]:
    """Return a contender after its first steps, its peak of memory in GiB, and the seconds of its first step."""
    with bench.weighed() as peak:
        contender = make()
        first = bench.seconds(contender.step)
        for _ in range(0 if bench.tiny else 2):
            contender.step()
        bench.seconds(lambda: None)
    return contender, (peak[0] if peak else None), first


def mfu_of(bench: Bench, contender: Contender, rate: float) -> float:
    return rate * contender.flops / find_peak(bench.device, bench.size.precision).tflops / 1e12


def steps_in_turn(bench: Bench, contenders: list[Contender], turns: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds per step of each contender in each turn, in an order that is turned round every time."""
    found: dict[str, list[float]] = {one.name: [] for one in contenders}
    for turn in range(turns):
        for one in contenders if turn % 2 else reversed(contenders):
            found[one.name].append(bench.seconds(one.step, steps))
    return found


def train(bench: Bench, case: Case) -> Lines:
    """Our step next to a plain loop's, in turns."""
    ours, gib, _ = made(bench, lambda: training.ours(bench.size, case, bench.device))
    plain, plain_gib, _ = made(bench, lambda: training.plain(bench.size, case, bench.device))
    turns, steps = (2, 1) if bench.tiny else (15, 4)
    spent = steps_in_turn(bench, [ours, plain], turns, steps)
    for one, memory in ((ours, gib), (plain, plain_gib)):
        rate = case.batch / statistics.median(spent[one.name])
        mfu = mfu_of(bench, ours, rate)
        note = f"{shown(ratios(spent['ours'], spent['plain']))} of plain; to reach {GOALS[case.name]:g}/s"
        yield Line(what=one.name, batch=case.batch, rate=rate, mfu=mfu, gib=memory, note=note if one is ours else "")


def alone(bench: Bench, case: Case, what: str, make: Callable[[], Contender]) -> Line:
    """Return the line of one contender by itself; one that cannot run is a line that states why."""
    try:
        contender, gib, first = made(bench, make)
        turns, steps = (1, 1) if bench.tiny else (7, 4)
        spent = statistics.median(bench.seconds(contender.step, steps) for _ in range(turns))
        rate = case.batch / spent
        return Line(
            what=what, batch=case.batch, rate=rate, mfu=mfu_of(bench, contender, rate), gib=gib,
            note=f"first step {first:.1f} s",
        )  # fmt: skip
    except Exception as error:
        return Line(what=what, batch=case.batch, note=problem(error))


def problem(error: BaseException) -> str:
    """Return what kept a line from being measured."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def compiled(bench: Bench, case: Case) -> Lines:
    """The compiled network, then with CUDA graphs. At tiny shapes the compiler itself, which takes minutes on a CPU, is
    left out."""
    torch._dynamo.config.disable = bench.tiny
    yield alone(bench, case, "compiled", lambda: training.ours(bench.size, case, bench.device, compile=True))
    if bench.device.type != "cuda":
        yield Line(what="compiled, CUDA graphs", batch=case.batch, note="needs a GPU")
        return
    torch._dynamo.reset()
    graphs = {"compile": True, "cuda_graphs": True}
    yield alone(bench, case, "compiled, CUDA graphs", lambda: training.ours(bench.size, case, bench.device, **graphs))


def attention(bench: Bench, case: Case) -> Lines:
    """The kernels of attention: PyTorch's own choice, each of its kernels alone, plain products, xformers."""
    from torch.nn.attention import SDPBackend

    yield alone(bench, case, "sdpa, PyTorch's choice", lambda: training.ours(bench.size, case, bench.device))
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        backend = getattr(SDPBackend, name)
        yield alone(bench, case, f"sdpa, {name.lower()}", lambda backend=backend: with_kernel(bench, case, backend))
    for kind in ("eager", "xformers"):
        yield alone(bench, case, kind, lambda kind=kind: training.ours(bench.size, case, bench.device, attention=kind))


def with_kernel(bench: Bench, case: Case, backend: Any) -> Contender:
    """Return our step whose UNet, but not its text encoder, may use one kernel alone."""
    from torch.nn.attention import sdpa_kernel

    contender = training.ours(bench.size, case, bench.device)
    unet = contender.keep[0].task.unet
    forward = unet.forward

    def only(*given: Any, **named: Any) -> Any:
        with sdpa_kernel(backend):
            return forward(*given, **named)

    unet.forward = only
    return contender


def sweep(bench: Bench, trainable: models.Trains, resolution: int) -> Lines:
    """Batches of twice the size each time, until one does not fit."""
    batch = 1 if bench.tiny else 16
    while batch <= (2 if bench.tiny else 4096):
        case = bench.case(trainable, resolution, batch)
        line = alone(bench, case, "ours", lambda case=case: training.ours(bench.size, case, bench.device))
        yield line
        if line.rate is None:
            return
        gc.collect()
        batch *= 2


def vae_encode(bench: Bench) -> Lines:
    """Latents of images as the encode job makes them: uint8 pixels on the host to float32 moments on the device."""
    from altdiffusion.diffusion.latent_sample import moments

    config = models.vae_config_sd21() | ({"block_out_channels": (32, 32, 32, 32)} if bench.tiny else {})
    for dtype in (torch.float32, torch.bfloat16):
        vae = models.build_vae(config, str(bench.device)).to(dtype)
        vae.decoder = torch.nn.Identity()
        for side, batch in ((64, 2),) if bench.tiny else ((256, 16), (256, 64), (512, 16)):
            pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)

            def encode(vae: Any = vae, pixels: torch.Tensor = pixels) -> None:
                with torch.inference_mode():
                    moments(vae, pixels.to(bench.device))

            yield called(bench, f"{side} pixels, {str(dtype).removeprefix('torch.')}", batch, encode)


def called(bench: Bench, what: str, batch: int, work: Callable[[], object]) -> Line:
    """Return the line of a function that handles one batch."""
    try:
        with bench.weighed() as peak:
            bench.seconds(work, 2)
            turns, times = (1, 1) if bench.tiny else (5, 4)
            spent = statistics.median(bench.seconds(work, times) for _ in range(turns))
        return Line(what=what, batch=batch, rate=batch / spent, gib=peak[0] if peak else None)
    except Exception as error:
        return Line(what=what, batch=batch, note=problem(error))


def clip_scoring(bench: Bench) -> Lines:
    """Embeddings of CLIP ViT-L/14's image tower as scoring computes them, from uint8 pixels on the host."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from altdiffusion.curation.scoring.embedding import ClipEmbedder
    from altdiffusion.diffusion.pinned_files import folder_digest

    large = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "projection_dim": 768,
    }  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**(large | small if bench.tiny else large))
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(bench.device):
            tower = CLIPVisionModelWithProjection(config)
        tower.to(torch.float16).save_pretrained(folder)
        del tower
        digest = folder_digest(folder)
        for dtype in ("float32", "bfloat16") if bench.tiny else ("float32", "bfloat16", "float16"):
            embedder = ClipEmbedder(folder, digest, device=str(bench.device), dtype=dtype)  # type: ignore[arg-type]
            for batch in (2,) if bench.tiny else (64, 256):
                pixels = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8).numpy()
                yield called(bench, f"ViT-L/14, {dtype}", batch, lambda e=embedder, p=pixels: e.embed(p))


def generation(bench: Bench) -> Lines:
    """Images from prompts: our sampler, without and with settings of speed, and the bare networks; then the job."""
    from altdiffusion.config import from_dict
    from altdiffusion.generation.loading import make_sampler
    from altdiffusion.generation.settings import GenerateConfig

    count, batch, steps = (2, 2, 3) if bench.tiny else (32, 16, 25)
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    settings: dict[str, Any] = {
        "steps": steps, "guidance_scale": 7.5, "batch_rows": batch, "dtype": str(dtype).removeprefix("torch."),
        "device": str(bench.device),
    }  # fmt: skip

    def scale() -> drawing.Scale:  # settings of speed change the networks in place
        with tempfile.TemporaryDirectory() as folder:
            return drawing.real_scale(Path(folder), str(bench.device), dtype, tiny=bench.tiny)

    plain = scale()
    rows = drawing.rows_of(plain, count, mixed=False)
    side = rows[0].width
    tree = {"model": {"folder": "none"}, "prompts": {"file": "none"}} | settings
    for name, speed in (
        ("sampler", {}),
        ("sampler, channels_last", {"channels_last": True}),
        ("sampler, DeepCache of 3, channels_last", {"deep_cache": 3, "channels_last": True}),
    ):
        own = plain if not speed else scale()
        sampler = make_sampler(own.bundle, from_dict(GenerateConfig, tree | {"speed": speed}))
        prompts, seeds = [row.prompt for row in rows], [row.seed for row in rows]

        def draw(sampler: Any = sampler, prompts: list[str] = prompts, seeds: list[int] = seeds) -> None:
            sampler.draw(prompts, seeds, side, side)

        yield once(bench, f"{name}, {side} pixels, {steps} steps", count, draw)
    drawn = drawing.bare("bare", plain, rows, settings).ready(Path("."))
    yield once(bench, "bare UNet and VAE", count, drawn)
    try:
        from benchmarks import drawing_job
    except ImportError as error:
        yield Line(what="job", batch=count, note=problem(error))
        return
    job = drawing_job.job("job", plain, rows, settings)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        job.ready(Path(first))()
        turn = job.ready(Path(second))
        yield Line(what="job: texts to image files and shards", batch=count, rate=count / bench.seconds(turn))


def once(bench: Bench, what: str, count: int, work: Callable[[], object]) -> Line:
    """Return the line of a function that makes `count` images, of which the first call does not count."""
    try:
        with bench.weighed() as peak:
            bench.seconds(work)
            spent = statistics.median(bench.seconds(work) for _ in range(1 if bench.tiny else 2))
        return Line(what=what, batch=count, rate=count / spent, gib=peak[0] if peak else None)
    except Exception as error:
        return Line(what=what, batch=count, note=problem(error))


CASES: dict[str, tuple[float, Callable[[Bench], Lines]]] = {
    "train K/V-256": (60, lambda b: train(b, b.case("kv", 256))),
    "train whole-256": (60, lambda b: train(b, b.case("all", 256))),
    "train whole-512": (60, lambda b: train(b, b.case("all", 512))),
    "generation": (90, generation),
    "VAE encode": (45, vae_encode),
    "CLIP scoring": (45, clip_scoring),
    "attention whole-512": (60, lambda b: attention(b, b.case("all", 512))),
    "batches K/V-256": (45, lambda b: sweep(b, "kv", 256)),
    "batches whole-256": (45, lambda b: sweep(b, "all", 256)),
    "batches whole-512": (45, lambda b: sweep(b, "all", 512)),
    "compiled K/V-256": (150, lambda b: compiled(b, b.case("kv", 256))),
    "compiled whole-512": (150, lambda b: compiled(b, b.case("all", 512))),
    "compiled whole-256": (150, lambda b: compiled(b, b.case("all", 256))),
}
"""Limit in seconds and function of each case, what matters most first."""


def run_case(name: str, tiny: bool, file: str) -> None:
    """Run one case and append its lines to a file, as JSON; what ends it is a line as well."""
    os.setsid()  # so that compilers that it starts end with it
    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    with open(file, "a", encoding="utf-8") as lines:

        def write(line: Line) -> None:
            lines.write(json.dumps(asdict(line)) + "\n")
            lines.flush()

        try:
            for line in CASES[name][1](Bench(device=device, tiny=tiny)):
                write(line)
        except Exception as error:
            write(Line(what="the rest", note=problem(error)))
