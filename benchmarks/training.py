"""What `benchmarks.train_step` times: our trainer, a plain loop, and the bare arithmetic, on equal models and samples.

Nothing here imports Ray, a lake or a dataset: samples are made up in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.diffusion.text_encoder import encode_text
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.update.trainer import Trainer

PAD = 1


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shapes of the networks."""

    name: str
    unet: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    sides: dict[int, int]
    """Side of the latents by resolution."""
    precision: str


def small() -> Size:
    """Return Stable Diffusion 2.1's blocks at a fifth of their width, in front of a small text encoder: for a CPU."""
    unet = models.unet_config_sd21() | {
        "block_out_channels": (64, 128, 256, 256),
        "attention_head_dim": (1, 2, 4, 4),
        "cross_attention_dim": 256,
    }
    text = models.text_config_demo(1000) | {
        "hidden_size": 256, "intermediate_size": 1024, "project_dim": 256, "max_position_embeddings": 79,
    }  # fmt: skip
    return Size(name="small", unet=unet, text=text, tokens=77, sides={256: 16, 512: 32}, precision="fp32")


def full() -> Size:
    """Return Stable Diffusion 2.1's UNet and AltDiffusion-m18's text encoder, weights at random: for a GPU."""
    sd21, m18 = models.unet_config_sd21(), models.text_config_m18()
    return Size(name="SD 2.1", unet=sd21, text=m18, tokens=77, sides={256: 32, 512: 64}, precision="bf16")


def tiny() -> Size:
    """Return the same blocks at a thirtieth of the width: to run every line in seconds."""
    unet = models.unet_config_sd21() | {
        "block_out_channels": (32, 32, 32, 32), "attention_head_dim": (1, 1, 1, 1), "cross_attention_dim": 32,
        "layers_per_block": 1,
    }  # fmt: skip
    text = models.text_config_demo(1000) | {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "project_dim": 32,
    }  # fmt: skip
    return Size(name="tiny", unet=unet, text=text, tokens=32, sides={256: 16, 512: 16}, precision="fp32")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, on how many images of which size."""

    trainable: models.Trains
    resolution: int
    batch: int

    @property
    def name(self) -> str:
        return f"{'whole' if self.trainable == 'all' else 'K/V'}-{self.resolution}"


class _Tokenizer:
    """As much of a tokenizer as a task needs."""

    pad_token_id = PAD

    def __init__(self, tokens: int) -> None:
        self.model_max_length = tokens

    def __call__(self, texts: list[str], **_: Any) -> Any:
        @dataclass
        class Ids:
            input_ids: Tensor

        return Ids(torch.tensor([[0, 2] + [PAD] * (self.model_max_length - 2)] * len(texts)))


@dataclass
class Contender:
    """One loop: `step` does one update and returns its loss."""

    name: str
    step: Callable[[], Tensor]
    flops: float = 0.0
    """FLOPs of one image."""
    keep: list[Any] = field(default_factory=list)


def bundle(size: Size, device: torch.device) -> models.ModelBundle:
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    return models.ModelBundle(
        unet=models.build_unet(size.unet, str(device)),
        vae=None,
        text_encoder=models.build_text_encoder(size.text, str(device)),
        tokenizer=_Tokenizer(size.tokens),
        scheduler=DDIMScheduler(**models.scheduler_config()),
    )


def batches(size: Size, case: Case) -> Any:
    """Return eight batches, over and over: latents as a dataset has them, captions of 10 to 30 tokens and pads."""
    side, generator = size.sides[case.resolution], torch.Generator().manual_seed(1)
    made = []
    for number in range(8):
        ids = torch.randint(3, 1000, (case.batch, size.tokens), generator=generator, dtype=torch.int32)
        lengths = torch.randint(10, 30, (case.batch, 1), generator=generator)
        ids[torch.arange(size.tokens) >= lengths] = PAD
        made.append(
            Samples(
                step=number,
                positions=torch.arange(case.batch) + number * case.batch,
                tensors={
                    "latents": torch.randn(case.batch, 4, side, side, generator=generator).half(),
                    "token_ids": ids,
                },
            )
        )
    return itertools.cycle(made)


def run_of(size: Size, case: Case, **compute: Any) -> ResolvedRun:
    tree = {
        "run": "benchmark", "stage": "quality", "trainable": case.trainable, "start": {"base": "none"},
        "datasets": [{"name": "none"}], "steps": 1_000_000, "global_batch": case.batch, "micro_batch": case.batch,
        "precision": size.precision, "compute": compute,
    }  # fmt: skip
    return ResolvedRun(
        config=from_dict(TrainConfig, tree), lake="", fingerprint="", datasets=(), base="", text_encoder=None,
        start=None, start_fingerprint=None, models=(),
    )  # fmt: skip


def ours(size: Size, case: Case, device: torch.device, name: str = "ours", **compute: Any) -> Contender:
    """Return the product's trainer as it is; `compute` are settings of ComputeConfig."""
    run = run_of(size, case, **compute)
    trainer = Trainer(run, DiffusionTask(run.config, bundle(size, device), device), device=device)
    feed = batches(size, case)
    flops = trainer.task.flops(next(feed))
    return Contender(name, lambda: trainer.update(next(feed)), flops, [trainer])


def with_plain_optimizer(size: Size, case: Case, device: torch.device) -> Contender:
    """Return ours with AdamW as torch makes it by default."""
    made = ours(size, case, device, "AdamW not fused")
    trainer: Trainer = made.keep[0]
    trainer.optimizer = torch.optim.AdamW(trainer.parameters, lr=0.0)
    trainer.on_device = False
    return made


def with_plain_ema(size: Size, case: Case, device: torch.device) -> Contender:
    """Return ours with diffusers' averages."""
    from diffusers.training_utils import EMAModel

    made = ours(size, case, device, "averages one by one")
    trainer: Trainer = made.keep[0]
    model = EMAModel(trainer.parameters)
    trainer.ema.update = lambda decay: model.step(trainer.parameters)  # type: ignore[method-assign]
    return made


def bare(size: Size, case: Case, device: torch.device) -> Contender:
    """Return the arithmetic alone, as ours does it: text encoder, forward, backward, AdamW, averages; all inputs drawn
    before. What ours takes longer is the loop's own."""
    made = ours(size, case, device, "bare")
    trainer: Trainer = made.keep[0]
    task = trainer.task
    assert isinstance(task, DiffusionTask)
    feed, noise = batches(size, case), torch.randn(case.batch, 4, *[size.sides[case.resolution]] * 2, device=device)
    timesteps = torch.randint(0, 1000, (case.batch,), device=device)
    ready = [next(feed) for _ in range(8)]
    inputs = itertools.cycle(
        [
            (s["latents"].to(device, task.dtype), s["token_ids"].to(device).long(), task.columns(s["token_ids"]))
            for s in ready
        ]
    )
    if task.config.compute.channels_last_on(device):
        noise = noise.contiguous(memory_format=torch.channels_last)

    def step() -> Tensor:
        trainer.optimizer.zero_grad(set_to_none=True)
        latents, ids, columns = next(inputs)
        context = task.encode(ids, columns)
        predicted = task.unet(latents, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        trainer.optimizer.step()
        trainer.ema.update(0.9999)
        return loss.detach()

    made.step = step
    return made


def plain(size: Size, case: Case, device: torch.device) -> Contender:
    """Return the steps of diffusers' train_text_to_image without accelerate: the same operations in the same order.

    float32 weights; with bf16, autocast around the UNet and a text encoder in bf16, as accelerate sets them up. The
    same parameters are frozen as in ours. Latents are given in both, so there is no autoencoder.
    """
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    parts, half = bundle(size, device), size.precision == "bf16"
    unet = parts.unet.to(device).train()
    trained = [parameter for _, parameter in models.trainable_parameters(unet, case.trainable)]
    weight_dtype = torch.bfloat16 if half else torch.float32
    encoder = parts.text_encoder.requires_grad_(False).to(device, weight_dtype)
    scheduler = DDPMScheduler(**{k: v for k, v in models.scheduler_config().items() if k != "set_alpha_to_one"})
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    warm_up = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=10_000)
    averages = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    averages.to(device)
    feed, seen = batches(size, case), [0.0]

    def step() -> Tensor:
        samples = next(feed)
        latents = samples["latents"].to(device, weight_dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device).long()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.no_grad():
            context = encode_text(encoder, samples["token_ids"].to(device).long(), PAD)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            predicted = unet(noisy, timesteps, context, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        seen[0] += loss.detach().repeat(len(latents)).mean().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        averages.step(unet.parameters())
        return loss.detach()

    return Contender("plain", step, 0.0, [unet, optimizer, averages])
