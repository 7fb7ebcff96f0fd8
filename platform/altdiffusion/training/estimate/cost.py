"""What a run will cost, before it runs: memory of a GPU, sizes of checkpoints, hours, how often to checkpoint.

Most of it is counted: parameters and the tensors that autograd keeps come from one forward pass on PyTorch's `meta`
device, which has shapes and no data. What only a GPU can show (images/s, the allocator's slack) is given by the config
or left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, at_least, positive
from altdiffusion.diffusion.convert import POSITIONS
from altdiffusion.diffusion.hub import HubId, is_hub_id
from altdiffusion.diffusion.models import (
    build_english_text_encoder,
    build_text_encoder,
    build_unet,
    build_vae,
    text_config_m18,
    trainable_parameters,
    unet_config_sd21,
    vae_config_sd21,
)
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import read_document
from altdiffusion.storage.user_cache import user_cache
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.estimate.goodput import FaultModel, best_interval_s, simulate
from altdiffusion.training.estimate.online_cost import vae_bytes
from altdiffusion.training.model import prepare_network
from altdiffusion.training.model.lora import adapters, add_adapters
from altdiffusion.training.order.mixture import make_order, sources_of
from altdiffusion.training.run.record import read_record
from altdiffusion.training.update.optimizers import state_bytes

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateConfig(Checked):
    """What `--dry-run` needs to estimate hours and checkpoints. It changes nothing of the run."""

    images_per_s_per_worker: Annotated[float | None, positive("null leaves the hours out")] = operational(None)
    """As measured (benchmarks.train_step, or an earlier run's log); null leaves hours out."""
    failures_per_worker_day: Annotated[float, positive("published rates are near 0.001")] = operational(0.003)
    """Interruptions of one worker; published rates for A100 and H100 clusters are between 0.0003 and 0.003."""
    checkpoint_gb_per_s: Annotated[float, positive()] = operational(1.0)
    """Rate at which a worker writes its share of a checkpoint, in GB/s."""
    copy_gb_per_s: Annotated[float, positive()] = operational(5.0)
    """Rate at which it copies its share to host memory, in GB/s; with `checkpoint_async` training waits only for
    that."""
    detect_s: Annotated[float, at_least(0)] = operational(30.0)
    """Seconds until a failure is noticed."""
    reschedule_s: Annotated[float, at_least(0)] = operational(420.0)
    """Seconds until the workers are there again, with a new node where one was lost."""
    load_s: Annotated[float, at_least(0)] = operational(150.0)
    """Seconds until they have loaded the newest checkpoint and compute."""
    source: str = operational("assumed")
    """Where these figures come from; `altdiffusion plan` prints it."""

    @property
    def restart_s(self) -> float:
        """Seconds from a failure until the run computes again."""
        return self.detect_s + self.reschedule_s + self.load_s


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a run trains, as far as its cost goes."""

    unet: dict[str, Any]
    text: dict[str, Any]
    resolution: int
    """Pixels per side of an image."""
    vae: dict[str, Any] = field(default_factory=vae_config_sd21)
    assumed: tuple[str, ...] = ()
    """What could not be read, and is assumed as in the published model."""

    @property
    def latent_factor(self) -> int:
        """Return the pixels of an image's side per pixel of the latent's."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def tokens(self) -> int:
        """Return the positions of a caption: the published 77, or as many as a smaller encoder has."""
        reserved = 0 if self.text.get("model_type") == "clip_text_model" else 2
        return min(POSITIONS, int(self.text["max_position_embeddings"]) - reserved)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts of one worker, in bytes unless stated otherwise."""

    parameters: int
    """Number of parameters of the network that is trained, wholly or in part, without adapters."""
    trained: int
    """Number of parameters that are trained."""
    weights: int
    """Weights as the loop holds them: float32; with bf16 the frozen ones in bf16. With the VAE's, of online runs."""
    training_state: int
    """Gradients and averages in float32 and the optimizer's moments, of what is trained."""
    activations: int
    """What autograd keeps of one micro-batch, and with gradient checkpointing the largest block that is recomputed; or
    what a VAE in the loop takes while it encodes, where that is more."""
    checkpoint: int
    """The network, or its adapters alone; moments and averages of what is trained."""
    export: int
    """A model folder in float32: UNet, VAE and text encoder, and the adapters where adapters are trained."""

    @property
    def total(self) -> int:
        return self.weights + self.training_state + self.activations


def estimate(config: TrainConfig, shapes: Shapes) -> Cost:
    """Return the counts of a run of a diffusion stage; `student_cost` counts the distillation stage."""
    quiet_libraries()
    encoder = _text_encoder(shapes.text)
    encoder_count = sum(parameter.numel() for parameter in encoder.parameters())
    half = config.precision == "bf16"
    network = build_unet(shapes.unet, "meta").train()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if config.lora is not None:
        add_adapters(network, config.lora, config.trainable, config.seed)
        trained = adapters(network)
    else:
        trained = trainable_parameters(network, config.trainable)
    counts = [parameter.numel() for _, parameter in trained]
    compute = replace(config.compute, attention="sdpa", compile=False, cuda_graphs=False)
    dtype = prepare_network(network, precision=config.precision, compute=compute, device=torch.device("meta"))
    moments = state_bytes(config.optimizer, counts)
    vae_weights, encoding = (
        (0, 0) if config.online is None else vae_bytes(shapes.vae, config.online, config.micro_batch)
    )
    return Cost(
        parameters=parameters,
        trained=sum(counts),
        weights=sum(weight.numel() * weight.element_size() for weight in network.parameters())
        + (2 if half else 4) * encoder_count
        + vae_weights,
        training_state=(4 + 4) * sum(counts) + moments,
        activations=max(
            encoding,
            kept_bytes(
                network,
                config.micro_batch,
                shapes.resolution // shapes.latent_factor,
                int(shapes.unet["cross_attention_dim"]),
                shapes.tokens,
                dtype,
            ),
        ),
        checkpoint=4 * (sum(counts) if config.lora is not None else parameters) + moments + 4 * sum(counts),
        export=4 * (parameters + encoder_count + vae_parameters(shapes.vae))
        + (4 * sum(counts) if config.lora is not None else 0),
    )


def vae_parameters(config: dict[str, Any]) -> int:
    """Return the number of parameters of an autoencoder."""
    return sum(parameter.numel() for parameter in build_vae(config, "meta").parameters())


def kept_steps(config: TrainConfig) -> list[int]:
    """Return the steps whose checkpoints are there when a run has ended: the last ones, and the multiples of
    `keep_every`. A checkpoint is written every `checkpoint_every` steps and at the last one."""
    every = config.checkpoint_every
    written = [step for step in range(every, config.steps + 1, every) if step > config.first_step]
    if config.steps % every:
        written.append(config.steps)
    for_good = {step for step in written if config.keep_every and step % config.keep_every == 0}
    return sorted(for_good | set(written[-config.keep_last :]))


def _text_encoder(config: dict[str, Any]) -> Any:
    build = build_english_text_encoder if config.get("model_type") == "clip_text_model" else build_text_encoder
    return build(config, "meta")


def kept_bytes(
    unet: Any, batch: int, side: int, context: int, tokens: int = POSITIONS, dtype: torch.dtype = torch.float32
) -> int:
    """Return the bytes that a training forward pass of a UNet on the `meta` device keeps for its backward pass.

    Each storage counts once, the weights do not count. Attention keeps queries, keys, values and its output, as fused
    kernels do. With gradient checkpointing the largest block is added: the backward pass recomputes one at a time.
    """
    latents = torch.empty(batch, unet.config.in_channels, side, side, device="meta", dtype=dtype)
    timesteps = torch.zeros(batch, dtype=torch.int64, device="meta")
    text = torch.empty(batch, tokens, context, device="meta", dtype=dtype)

    def run() -> Any:
        return unet(latents, timesteps, encoder_hidden_states=text, return_dict=False)

    kept = kept_by(unet, run)
    if not unet.is_gradient_checkpointing:
        return kept
    unet.disable_gradient_checkpointing()
    try:
        return kept + _largest_block(unet, run)
    finally:
        unet.enable_gradient_checkpointing()


def kept_by(network: Any, run: Callable[[], Any], kept: dict[int, Any] | None = None) -> int:
    """Return the bytes of the storages that a pass keeps; `kept`, where given, is filled on the way."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    held: dict[int, Any] = {} if kept is None else kept

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer = run()
    del answer
    return sum(int(storage.nbytes()) for storage in held.values())


def _largest_block(unet: Any, run: Callable[[], Any]) -> int:
    """Return the bytes kept of one pass by the largest of the blocks that diffusers checkpoints."""
    kept: dict[int, Any] = {}
    before: dict[int, int] = {}
    largest = 0

    def enter(block: Any, _: Any) -> None:
        before[id(block)] = sum(int(storage.nbytes()) for storage in kept.values())

    def leave(block: Any, *_: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(int(storage.nbytes()) for storage in kept.values()) - before[id(block)])

    hooks = []
    for part in unet.modules():
        if type(part).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
            hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        kept_by(unet, run, kept)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """A substitute for a fused attention kernel on the `meta` device: shapes and what is kept, no values."""

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


def fault_model(
    config: TrainConfig, given: EstimateConfig, cost: Cost, *, step_s: float, workers: int | None = None
) -> FaultModel:
    """Return a run under the failures that its config assumes.

    Args:
        step_s: seconds per step.
        workers: number of workers, where it is another one than the config's.
    """
    workers = workers or config.workers.count
    write_s = cost.checkpoint / 1e9 / workers / given.checkpoint_gb_per_s
    return FaultModel(
        useful_s=(config.steps - config.first_step) * step_s,
        interval_s=config.checkpoint_every * step_s,
        stall_s=write_s * given.checkpoint_gb_per_s / given.copy_gb_per_s if config.checkpoint_async else write_s,
        write_s=write_s,
        restart_s=given.restart_s,
        mean_s=86400 / (workers * given.failures_per_worker_day),
    )


def lines(config: TrainConfig, given: EstimateConfig, cost: Cost, shapes: Shapes) -> list[str]:
    """Return the estimate for people."""
    found = _lines(config, given, cost, shapes)
    if shapes.assumed:
        found.append(f"assumed     {'; '.join(shapes.assumed)}")
    return found


def _lines(config: TrainConfig, given: EstimateConfig, cost: Cost, shapes: Shapes) -> list[str]:
    workers, images = config.workers.count, (config.steps - config.first_step) * config.global_batch
    found = [
        f"memory      {cost.total / GIB:.1f} GiB per worker: {cost.weights / GIB:.1f} weights + "
        f"{cost.training_state / GIB:.1f} gradients, moments and averages + {cost.activations / GIB:.1f} kept of "
        f"{_unit(config, shapes)} (counted; kernels' workspace not included)",
        f"parameters  {cost.trained:,} of {cost.parameters:,} are trained",
        *_disk(config, cost),
        *_size_note(config, shapes),
    ]
    rate = given.images_per_s_per_worker
    step_s = 1.0 if rate is None else config.global_batch / (rate * workers)
    model = fault_model(config, given, cost, step_s=step_s)
    best_s = max(best_interval_s(model.stall_s, model.mean_s), model.write_s)  # one at a time is written
    best = (
        f"one every {best_s / 60:.1f} min loses the least at {model.stall_s:.2g} s of stall and a failure every "
        f"{model.mean_s / 3600:.0f} h"
    )
    if rate is None:
        return [*found, f"interval    {best}", "hours       give estimate.images_per_s_per_worker as measured"]
    return [
        *found,
        f"interval    {best}: checkpoint_every {max(1, round(best_s / step_s)):,} (now {config.checkpoint_every:,})",
        f"hours       {images / rate / 3600:,.0f} worker-hours, {images / rate / workers / 86400:.1f} days at "
        f"{rate:g} images/s per worker",
        _goodput_line(model),
    ]


def _goodput_line(model: FaultModel) -> str:
    """Return what failures will leave of a run's time; a run that would hardly come on is described as such."""
    try:
        found = simulate(model)
    except AltDiffusionError as error:
        return f"goodput     {error.what} {error.problem}: {error.remedy}"
    return (
        f"goodput     {found.goodput:.1%} expected, {found.low:.1%} to {found.high:.1%} in 90 of 100 runs; "
        f"{found.failures:.1f} failures, {model.restart_s:g} s to start again after each, "
        f"{found.lost_s / 3600:.1f} h computed twice"
    )


def _size_note(config: TrainConfig, shapes: Shapes) -> list[str]:
    """Return a line where a run's images have another size than the base's UNet is made for, as in the recipe's stage
    1."""
    latents = shapes.unet.get("sample_size")
    if config.stage == "distillation" or not isinstance(latents, int):
        return []
    own = latents * shapes.latent_factor
    if own == shapes.resolution:
        return []
    return [f"size        images of {shapes.resolution} px; the base's UNet, and exports by default, are of {own} px"]


def disk_bytes(config: TrainConfig, cost: Cost) -> int:
    """Return the bytes of checkpoints and exports when the run has ended, where they are most."""
    return (len(kept_steps(config)) + 1) * (cost.checkpoint + cost.export)


def _disk(config: TrainConfig, cost: Cost) -> list[str]:
    """Return lines on the bytes of checkpoints and exports when the run has ended, where they are most."""
    kept = kept_steps(config)
    last = min(config.keep_last, len(kept))
    which = f"the last {last}" + (
        f" and every {config.keep_every:,} steps" if config.keep_every and len(kept) > last else ""
    )
    checkpoints, exports = (len(kept) + 1) * cost.checkpoint, (len(kept) + 1) * cost.export
    return [
        f"checkpoint  {cost.checkpoint / 1e9:.2f} GB (weights, averages, moments); {len(kept)} kept, {which}; with the "
        f"one that is being written {checkpoints / 1e9:,.1f} GB",
        f"exports     {cost.export / 1e9:.2f} GB each (averages), of the start and of every kept checkpoint: "
        f"{exports / 1e9:,.1f} GB",
        f"disk        {disk_bytes(config, cost) / 1e9:,.1f} GB in total",
        *_kept_by_language(config),
    ]


def _kept_by_language(config: TrainConfig) -> list[str]:
    limit_gb = config.workers.language_disk_gb
    if config.order.language_temperature is None or limit_gb == 0 or config.online is not None:
        return []
    room = "half of what is free" if limit_gb is None else f"{limit_gb:,g} GB"
    return [
        f"languages   while the run reads them, rows are kept by language in {user_cache('chunks')} of each machine, "
        f"up to {room} (workers.language_disk_gb)"
    ]


def epochs_line(config: TrainConfig, versions: Sequence[Version]) -> str:
    """Return a line on how often each dataset will have been seen."""
    seen = zip(sources_of(config, versions), make_order(config, versions).epochs(config.steps), strict=True)
    return "epochs      " + ", ".join(f"{epochs:.2f} of {source.name}" for source, epochs in seen)


def _unit(config: TrainConfig, shapes: Shapes) -> str:
    if config.stage == "distillation":
        return f"{config.micro_batch} pairs"
    return f"{config.micro_batch} images of {shapes.resolution} px"


def shapes_of(config: TrainConfig, lake: str, look: bool) -> Shapes:
    """Return what can be found of a run's shapes without fetching anything; the rest is assumed, and marked so.

    Args:
        look: whether the lake may be read.
    """
    base, text_encoder = config.start.base, config.start.text_encoder
    before = config.start.checkpoint
    if config.continue_from is not None:
        before = config.continue_from.partition("@")[0]
    if before is not None:
        earlier = read_record(lake, before) if look else None
        base, text_encoder = (earlier["base"], earlier["text_encoder"]) if earlier else (None, None)
    if base is not None and base.endswith(".safetensors"):
        base = config.start.base_configs  # a single file, which the dry run has converted for a trial
    base = _at_hand(base, lake, "")
    assumed = []
    unet = _config(base, "unet", look)
    if unet is None:
        assumed.append("the UNet of Stable Diffusion 2.1 (what the run starts from is not here yet)")
    folder = _at_hand(text_encoder, lake, "--text-encoder") if text_encoder else base
    text = _config(folder, "text_encoder", look) or (_config(folder, "", look) if text_encoder else None)
    text = text["text_config"] if text and isinstance(text.get("text_config"), dict) else text
    if text is None or not {"max_position_embeddings", "hidden_size", "vocab_size"} <= text.keys():
        text = None
        assumed.append("the text encoder of AltDiffusion-m18")
    vae = _config(base, "vae", look)
    resolution = config.online.resolution if config.online is not None else None
    if resolution is None and look:
        resolution = _resolution_of(config, lake)
    if resolution is None and config.stage != "distillation":
        assumed.append("latents of the published resolution (their dataset is not here yet)")
    published = 256 if config.stage == "alignment" else 512
    return Shapes(
        unet=unet or unet_config_sd21(),
        text=text or text_config_m18(),
        resolution=resolution or published,
        vae=vae or vae_config_sd21(),
        assumed=tuple(assumed),
    )


def _resolution_of(config: TrainConfig, lake: str) -> int | None:
    """Return the pixels per side of the latents' images, as their dataset states."""
    try:
        return int(Lake(lake).version(config.datasets[0].name).manifest.config["encode"]["resolution"])
    except (AltDiffusionError, KeyError, TypeError):
        return None


def _at_hand(uri: str | None, lake: str, suffix: str) -> str | None:
    """Return the folder of a model; for a hub model the one where it is kept after it was fetched."""
    if uri is None or not is_hub_id(uri):
        return uri
    return files.join(lake, "models", HubId.parse(uri).folder_name + suffix)


def _config(folder: str | None, part: str, look: bool) -> dict[str, Any] | None:
    if folder is None or not (look or files.is_local(folder)):
        return None
    try:
        found = read_document(files.join(folder, part, "config.json")).value
    except (FileNotFoundError, AltDiffusionError):
        return None
    return found
