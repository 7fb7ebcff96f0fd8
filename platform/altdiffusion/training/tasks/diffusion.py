"""The diffusion stages: the UNet learns to read the frozen text encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from altdiffusion.diffusion import noise
from altdiffusion.diffusion.models import ModelBundle, trainable_parameters
from altdiffusion.diffusion.objective import Noising, Schedule, squared_error
from altdiffusion.diffusion.text_encoder import columns_used, encode_text, has_one_pad, tokenize
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.model import prepare_network
from altdiffusion.training.model.flops import on_meta, step_flops
from altdiffusion.training.model.lora import adapters
from altdiffusion.training.model.pads import repeat_pads
from altdiffusion.training.model.text_cache import TextCache
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.tasks.latents import LatentSource, OnlineLatents, StoredLatents


class DiffusionTask:
    """A UNet behind a frozen text encoder.

    Samples: what the source of latents reads (tasks.latents), and `token_ids` int32 [B, T].

    Args:
        bundle: the models on the CPU, the UNet with its adapters where adapters are trained; what is needed moves to
            `device`. Its scheduler defines what the UNet predicts and the noise schedule.
        key: the key of the run's draws; by default that of a new run of this config.
    """

    def __init__(
        self, config: TrainConfig, bundle: ModelBundle, device: torch.device, key: RunKey | None = None
    ) -> None:
        self.config, self.device = config, device
        self.seed = (key or RunKey.of(config)).seed(config.seed)
        self.module = self.unet = bundle.unet.train()
        if config.lora is None:
            self.weights_file, trained = checkpoints.UNET, trainable_parameters(self.unet, config.trainable)
        else:
            self.weights_file, trained = checkpoints.LORA, adapters(self.unet)
        self._plain = on_meta(self.unet)  # before kernels, layouts and shards, which do not enter the count
        self.dtype = prepare_network(self.unet, precision=config.precision, compute=config.compute, device=device)
        sharded = dict(self.unet.named_parameters())  # sharding has replaced them by others of the same names
        self.trained = [(name, sharded.get(name, parameter)) for name, parameter in trained]
        self.text_encoder = bundle.text_encoder.eval().requires_grad_(False).to(device, self.dtype)
        self.pad_id = int(bundle.tokenizer.pad_token_id)
        self.empty_ids = tokenize(bundle.tokenizer, [""])[0].to(device)
        noising = Noising.of(bundle.scheduler.config, "scheduler")
        self.prediction, self.schedule = noising.prediction, Schedule.of(noising, device)
        if config.online is None:
            self.latents_of: LatentSource = StoredLatents(bundle.tokenizer, device)
        else:
            own = self.seed if config.online.seed is None else config.online.seed
            self.latents_of = OnlineLatents(replace(config.online, seed=own), bundle, device)
        self.layout = self.latents_of.layout
        self.tokens = self.latents_of.tokens
        self._flops: dict[tuple[int, ...], float] = {}
        compute = config.compute
        self._pads_once = compute.pads_once and not compute.compile and has_one_pad(self.text_encoder)
        if self._pads_once:
            repeat_pads(self.unet, len(self.empty_ids))
        cache_mb = config.workers.text_cache_mb
        self._cache = TextCache(self._encode, cache_mb << 20) if cache_mb else None

    def weights(self) -> dict[str, Tensor]:
        return dict(self.unet.state_dict() if self.config.lora is None else self.trained)

    def loss(self, samples: Samples) -> Tensor:
        config, gamma = self.config, self.config.objective.min_snr_gamma
        positions = samples.positions.to(self.device, non_blocking=True)
        latents = self.latents_of(samples)
        columns = self.columns(samples["token_ids"])
        ids = samples["token_ids"].to(self.device, non_blocking=True).to(torch.int64)
        eps = noise.keyed_normal(self.seed, positions, noise.NOISE, latents.shape[1:])
        if config.objective.noise_offset:
            offsets = noise.keyed_normal(self.seed, positions, noise.NOISE_OFFSET, (latents.shape[1], 1, 1))
            eps = eps + config.objective.noise_offset * offsets
        timesteps = noise.keyed_timesteps(self.seed, positions, self.schedule.steps)
        if config.caption_drop > 0:
            drop = noise.keyed_uniform(self.seed, positions, noise.CAPTION_DROP) < config.caption_drop
            ids = torch.where(drop.unsqueeze(1), self.empty_ids, ids)
        errors = self.errors(latents, ids, eps, timesteps, columns)
        if gamma is not None:
            errors = errors * self.schedule.min_snr_weights(self.prediction, gamma, timesteps)
        return errors.mean()

    def errors(
        self, latents: Tensor, ids: Tensor, eps: Tensor, timesteps: Tensor, columns: int | None = None
    ) -> Tensor:
        """Return the mean squared error of what the UNet predicts, float32 [B].

        Args:
            latents, eps: float32 [B, C, H, W]; the noise that is added at `timesteps`, int64 [B].
            ids: int64 [B, T].
            columns: as `columns` returns for `ids`.
        """
        compute = self.config.compute
        noisy = self.schedule.add_noise(latents, eps, timesteps).to(self.dtype)
        if compute.channels_last_on(self.device):
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        if compute.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=self.encode(ids, columns), return_dict=False)[0]
        return squared_error(predicted, self.schedule.target(self.prediction, latents, eps, timesteps))

    def flops(self, samples: Samples) -> float:
        """Count the UNet alone, as published figures do: text encoder and drawing of noise count as time, not work."""
        shape = self.latents_of.shape(samples)
        if shape not in self._flops:
            context = (1, samples["token_ids"].shape[1], int(self.unet.config.cross_attention_dim))
            self._flops[shape] = step_flops(
                self._plain,
                torch.empty(1, *shape, device="meta"),
                torch.zeros(1, dtype=torch.int64, device="meta"),
                encoder_hidden_states=torch.empty(context, device="meta"),
                return_dict=False,
            )
        return self._flops[shape]

    def encode(self, token_ids: Tensor, columns: int | None = None) -> Tensor:
        """Return what the UNet reads, [B, T, D] of int64 [B, T]; where `columns` is given, [B, columns, D]."""
        if self._cache is not None:
            return self._cache(token_ids)[:, :columns]
        return self._encode(token_ids[:, :columns])

    def columns(self, token_ids: Tensor) -> int | None:
        """Return how many columns of int [B, T] are computed: those of the captions and one of pads; None for all T.

        To be called while they are on the CPU: elsewhere it waits for the device.
        """
        return columns_used(token_ids, self.pad_id) if self._pads_once else None

    def _encode(self, token_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return encode_text(self.text_encoder, token_ids, self.pad_id)
