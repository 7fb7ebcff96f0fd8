"""What a run will cost, before it runs: memory of a GPU, sizes of checkpoints, hours, how often to checkpoint.

Counted, not guessed, as far as counting goes: parameters and the tensors that autograd keeps come from one forward
pass on PyTorch's `meta` device, which has shapes and no data. What only a GPU knows (images/s, the allocator's slack)
is given by the config or left out.

Shapes: B micro-batch, S pixels of the side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altdiffusion.config import operational
from altdiffusion.diffusion.models import (
    build_english_text_encoder,
    build_text_encoder,
    build_unet,
    text_config_m18,
    trainable_parameters,
    unet_config_sd21,
)
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.mixture import make_order, sources_of
from altdiffusion.training.resolve import read_record

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateConfig:
    """What `--dry-run` has to be told to estimate hours and checkpoints. It changes nothing of the run."""

    images_per_s_per_worker: float | None = operational(None)
    """As measured (benchmarks.train_step, or an earlier run's log); null leaves hours out."""
    failures_per_worker_day: float = operational(0.003)
    """Interruptions of one worker; published rates for A100 and H100 clusters lie between 0.0003 and 0.003."""
    checkpoint_gb_per_s: float = operational(1.0)
    """Rate at which a checkpoint is written while training waits, in GB/s."""

    def __post_init__(self) -> None:
        if self.images_per_s_per_worker is not None and self.images_per_s_per_worker <= 0:
            raise ValueError("images_per_s_per_worker: must be positive; null leaves the hours out")
        if self.failures_per_worker_day <= 0 or self.checkpoint_gb_per_s <= 0:
            raise ValueError("failures_per_worker_day: rates must be positive; published ones are near 0.001")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts of one worker, in bytes where not said otherwise."""

    parameters: int
    trained: int
    """Number of parameters that are trained."""
    weights: int
    """Weights as the loop holds them: UNet and text encoder in float32, and autocast's copies in bf16."""
    training_state: int
    """Gradients, AdamW's two moments and the averages, in float32, of what is trained."""
    activations: int
    """What autograd keeps of one micro-batch."""
    checkpoint: int
    """All of the UNet; moments and averages of what is trained."""

    @property
    def total(self) -> int:
        return self.weights + self.training_state + self.activations


def estimate(config: TrainConfig, resolution: int, unet: dict[str, Any] | None, text: dict[str, Any] | None) -> Cost:
    """Counts a run.

    Args:
        resolution: S.
        unet: its config; None takes Stable Diffusion 2.1's.
        text: the text encoder's config; None takes AltDiffusion-m18's.
    """
    quiet_libraries()
    unet_config, text_config = unet or unet_config_sd21(), text or text_config_m18()
    network = build_unet(unet_config, "meta").train()
    trained = sum(parameter.numel() for _, parameter in trainable_parameters(network, config.trainable))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    context = int(unet_config["cross_attention_dim"])
    half = config.precision == "bf16"
    build = build_english_text_encoder if text_config.get("model_type") == "clip_text_model" else build_text_encoder
    encoder = sum(parameter.numel() for parameter in build(text_config, "meta").parameters())
    factor = 2 if half else 0
    return Cost(
        parameters=parameters,
        trained=trained,
        weights=(4 + factor) * (parameters + encoder),
        training_state=(4 + 8 + 4) * trained,
        activations=kept_bytes(
            network.to(torch.bfloat16) if half else network, config.micro_batch, resolution // 8, context
        ),
        checkpoint=4 * parameters + (8 + 4) * trained,
    )


def kept_bytes(unet: Any, batch: int, side: int, context: int, tokens: int = 77) -> int:
    """Bytes that a training forward pass of a UNet on the `meta` device keeps for its backward pass.

    Each storage counts once, the weights do not count. Attention keeps queries, keys, values and its output, as fused
    kernels do.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    dtype = next(unet.parameters()).dtype
    latents = torch.empty(batch, unet.config.in_channels, side, side, device="meta", dtype=dtype)
    timesteps = torch.zeros(batch, dtype=torch.int64, device="meta")
    text = torch.empty(batch, tokens, context, device="meta", dtype=dtype)
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer = unet(latents, timesteps, encoder_hidden_states=text, return_dict=False)
    del answer
    return sum(int(storage.nbytes()) for storage in kept.values())


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """Stands for a fused attention kernel on the `meta` device: shapes and what is kept, no values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, answer)
        return answer


@contextmanager
def _fused_attention() -> Iterator[None]:
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, **_: _Attention.apply(query, key, value)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def best_interval_s(stall_s: float, mean_s_between_failures: float) -> float:
    """Seconds between checkpoints that lose the least: sqrt(2 stall mtbf) (Young 1974, first order)."""
    return math.sqrt(2 * stall_s * mean_s_between_failures)


def lines(config: TrainConfig, given: EstimateConfig, cost: Cost, resolution: int) -> list[str]:
    """The estimate for people."""
    workers, images = config.workers.count, config.steps * config.global_batch
    found = [
        f"memory      {cost.total / GIB:.1f} GiB a worker: {cost.weights / GIB:.1f} weights + "
        f"{cost.training_state / GIB:.1f} gradients, moments and averages + {cost.activations / GIB:.1f} kept of "
        f"{config.micro_batch} pictures of {resolution} px (counted; kernels' workspace not included)",
        f"parameters  {cost.trained:,} of {cost.parameters:,} are trained",
        f"checkpoint  {cost.checkpoint / 1e9:.2f} GB, {config.keep_last} kept: "
        f"{config.keep_last * cost.checkpoint / 1e9:.1f} GB",
    ]
    stall_s = cost.checkpoint / 1e9 / given.checkpoint_gb_per_s
    between_s = 86400 / (workers * given.failures_per_worker_day)
    best_s = best_interval_s(stall_s, between_s)
    told = (
        f"one every {best_s / 60:.0f} min loses the least at {stall_s:.1f} s a checkpoint and a failure every "
        f"{between_s / 3600:.0f} h"
    )
    rate = given.images_per_s_per_worker
    if rate is None:
        return [*found, f"interval    {told}", "hours       give estimate.images_per_s_per_worker as measured"]
    step_s = config.global_batch / (rate * workers)
    return [
        *found,
        f"interval    {told}: checkpoint_every {max(1, round(best_s / step_s)):,} (now {config.checkpoint_every:,})",
        f"hours       {images / rate / 3600:,.0f} worker-hours, {images / rate / workers / 86400:.1f} days at "
        f"{rate:g} images/s a worker",
    ]


def epochs_line(config: TrainConfig, lake: str, look: bool) -> str:
    """How often each dataset will have been seen, where one may look into the lake and it holds them all."""
    try:
        versions = [Lake(lake).version(dataset.name) for dataset in config.datasets] if look else []
    except AltDiffusionError as error:
        return f"epochs      unknown: {error.what} {error.problem}"
    if not versions:
        return "epochs      unknown: the lake is not on this machine (--remote looks)"
    order = make_order(config, versions)
    told = zip(sources_of(config, versions), order.epochs(config.steps), strict=True)
    return "epochs      " + ", ".join(f"{epochs:.2f} of {source.name}" for source, epochs in told)


def resolution_of(config: TrainConfig, lake: str, look: bool) -> int:
    """Pixels of the latents: as their dataset says, else what the published stage has."""
    try:
        if look:
            return int(Lake(lake).version(config.datasets[0].name).manifest.config["encode"]["resolution"])
    except (AltDiffusionError, KeyError):
        pass
    return 256 if config.stage == "alignment" else 512


def model_configs(config: TrainConfig, lake: str, look: bool) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The configs of the UNet and of the text encoder that a run starts from, None for what is not there (yet)."""
    base, text_encoder = config.start.base, config.start.text_encoder
    if config.start.checkpoint is not None and look:
        earlier = read_record(lake, config.start.checkpoint)
        base, text_encoder = (earlier["base"], earlier["text_encoder"]) if earlier else (None, None)
    text = text_encoder if text_encoder is not None else files.join(base, "text_encoder") if base else None
    return _config(files.join(base, "unet") if base else None, look), _config(text, look)


def _config(folder: str | None, look: bool) -> dict[str, Any] | None:
    if folder is None or not (look or files.is_local(folder)):
        return None
    try:
        found: dict[str, Any] = json.loads(files.read_bytes(files.join(folder, "config.json")))
    except (FileNotFoundError, AltDiffusionError):
        return None
    return found
