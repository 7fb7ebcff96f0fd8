"""The networks: their published and demo shapes, the parameters that a stage trains, and model folders.

Every network is a stock class of diffusers or transformers, so `diffusers.DiffusionPipeline.from_pretrained` opens and
runs a model folder without any code of ours. The published shapes are Stable
Diffusion 2.1 base's UNet (`unet/config.json` of its repository) and AltDiffusion-m18's text encoder (FlagAI
`examples/AltDiffusion-m18`, arXiv 2308.09991): XLM-R large whose last layer the UNet never reads, hence 23 layers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from altdiffusion.diffusion.parts_fit import PartConfigs, check_fit
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.weight_files import load_network, open_tokenizer, read_settings
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.files import filesystem, is_local, local_path

Trains = Literal["kv", "attn2", "all"]

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""The parts of a model folder."""
IGNORED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Parts that a model_index.json may name and that are never read."""
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",  # the same parts in other uses
    "AltDiffusionPipeline",
    "AltDiffusionImg2ImgPipeline",
)
_TRAINED: dict[Trains, tuple[str, ...]] = {
    "kv": (".attn2.to_k.", ".attn2.to_v."),  # the alignment stage as published: 32 tensors of the real UNet
    "attn2": (".attn2.",),  # what the released code really trains: 80 tensors
    "all": ("",),
}


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """The parts of one model folder, in evaluation mode.

    Attributes:
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL`; latents are scaled by `vae.config.scaling_factor`.
        text_encoder: `AltCLIPTextModel`, or `CLIPTextModel` where the base still supports English only.
        tokenizer: pads to `tokenizer.model_max_length` positions.
        scheduler: a diffusers scheduler; its config states what the UNet predicts.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    def with_text_encoder(self, text_encoder: Any, tokenizer: Any) -> ModelBundle:
        """Return the same model behind another text encoder.

        Raises:
            AltDiffusionError: the UNet expects vectors of another width.
        """
        width, wanted = text_width(text_encoder), int(self.unet.config.cross_attention_dim)
        if width != wanted:
            raise AltDiffusionError(
                f"text encoder {type(text_encoder).__name__} of width {width}",
                f"does not fit a UNet that reads vectors of width {wanted}",
                "use the encoder that belongs to this base",
            )
        return replace(self, text_encoder=text_encoder, tokenizer=tokenizer)


def unet_config_sd21() -> dict[str, Any]:
    """Return Stable Diffusion 2.1 base's: 865,910,724 parameters, latents [4, 64, 64], context [77, 1024]."""
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
    }


def unet_config_demo() -> dict[str, Any]:
    """Return the demo's: latents [16, 8, 8], context [32, 128]."""
    return {
        "sample_size": 8,
        "in_channels": 16,
        "out_channels": 16,
        "layers_per_block": 1,
        "block_out_channels": (64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 128,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
    }


def text_config_m18() -> dict[str, Any]:
    """Return AltDiffusion-m18's, as the UNet reads it: XLM-R large without its last layer, 77 -> [77, 1024]."""
    return {
        "vocab_size": 250002,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "project_dim": 1024,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "use_attention_mask": True,  # StableDiffusionPipeline passes the mask only where this is set
    }


def text_config_demo(vocab_size: int) -> dict[str, Any]:
    """Return that of the demo's multilingual encoder: 32 -> [32, 128]."""
    return text_config_m18() | {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 34,
        "project_dim": 128,
    }


def english_text_config_demo(vocab_size: int) -> dict[str, Any]:
    """Return that of the demo base's English encoder, a `CLIPTextModel`: 32 -> [32, 128]."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "hidden_act": "gelu",
        "projection_dim": 128,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def vae_config_sd21() -> dict[str, Any]:
    """Return Stable Diffusion's: 83,653,863 parameters, images [3, R, R] in -1..1 <-> latents [4, R/8, R/8]."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 768,
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "act_fn": "silu",
        "scaling_factor": 0.18215,
    }


def vae_config_demo() -> dict[str, Any]:
    """Return the demo's: images [3, 32, 32] in -1..1 <-> latents [16, 8, 8]."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 32,
        "latent_channels": 16,
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    }


def scheduler_config() -> dict[str, Any]:
    """Return Stable Diffusion's noise schedule, for `DDIMScheduler`."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def build_unet(config: dict[str, Any], device: str = "cpu") -> Any:
    """Return a `UNet2DConditionModel` with fresh weights; on "meta" it takes no memory."""
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        return UNet2DConditionModel.from_config(config).eval()


def build_vae(config: dict[str, Any], device: str = "cpu") -> Any:
    """Return an `AutoencoderKL` with fresh weights."""
    from diffusers import AutoencoderKL

    with torch.device(device):
        return AutoencoderKL.from_config(config).eval()


def build_text_encoder(config: dict[str, Any], device: str = "cpu") -> Any:
    """Return an `AltCLIPTextModel` with fresh weights."""
    from transformers import AltCLIPTextConfig, AltCLIPTextModel

    with torch.device(device):
        return AltCLIPTextModel(AltCLIPTextConfig(**config)).eval()


def build_english_text_encoder(config: dict[str, Any], device: str = "cpu") -> Any:
    """Return a `CLIPTextModel` with fresh weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device(device):
        return CLIPTextModel(CLIPTextConfig(**config)).eval()


def trainable_parameters(unet: Any, which: Trains) -> list[tuple[str, torch.nn.Parameter]]:
    """Set `requires_grad` on every parameter of the UNet, and return those that a stage trains.

    Returns:
        Names and parameters, in the UNet's own order.
    """
    if which not in _TRAINED:
        raise AltDiffusionError(f"trains {which!r}", "is unknown", f"use one of {', '.join(_TRAINED)}")
    chosen: list[tuple[str, torch.nn.Parameter]] = []
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(any(part in name for part in _TRAINED[which]))
        if parameter.requires_grad:
            chosen.append((name, parameter))
    return chosen


def text_width(text_encoder: Any) -> int:
    """Return the width D of the vectors that `encode_text` returns."""
    config = text_encoder.config
    return int(config.project_dim if hasattr(config, "project_dim") else config.hidden_size)


@contextmanager
def local_folder(uri: str | Path) -> Iterator[Path]:
    """Yield a model folder on the local file system; a remote folder is copied for the duration of the block."""
    if is_local(str(uri)):
        yield Path(local_path(str(uri)))
        return
    fs, path = filesystem(str(uri))
    with tempfile.TemporaryDirectory() as scratch:
        fs.get(path.rstrip("/") + "/", scratch + "/", recursive=True)
        yield Path(scratch)


def load_bundle(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ModelBundle:
    """Open a model folder with stock diffusers, from safetensors only and without fetching anything.

    Raises:
        AltDiffusionError: it is not a model folder of Stable Diffusion's kind, a part is missing or damaged, the
            weights of a part are not exactly its network's (diffusion.weight_files), or parts do not match; or the
            device is not there.
    """
    quiet_libraries()
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

    what, again = f"model folder {folder}", "write or export it again, or give the folder as published"
    with local_folder(folder) as local:
        index = read_index(local, folder)
        parts = {
            name: load_network(kind, local / name, f"{what}, {name}", remedy=again, dtype=dtype)
            for name, kind in (
                ("unet", UNet2DConditionModel),
                ("vae", AutoencoderKL),
                ("text_encoder", text_encoder_class(index, what)),
            )
        }
        parts["tokenizer"] = load_tokenizer(local, index, what)
        check_reads(parts["text_encoder"], parts["tokenizer"], what)
        read_settings(local / "scheduler" / "scheduler_config.json", f"{what}, scheduler")
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                str(local),
                **parts,
                local_files_only=True,
                trust_remote_code=False,
                safety_checker=None,  # Stable Diffusion's index names these two parts; they are never used, and
                feature_extractor=None,  # loading them would take torchvision and a gigabyte
            )
        except Exception as error:  # every kind of damage raises its own class
            raise AltDiffusionError(
                what, f"cannot be opened ({first_line(error)})", "write or export it again"
            ) from error
    bundle = ModelBundle(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
    )
    check_fit(
        PartConfigs(unet=bundle.unet.config, vae=bundle.vae.config, text_encoder=bundle.text_encoder.config.to_dict()),
        what,
    )
    check_device(device)
    for network in (bundle.unet, bundle.vae, bundle.text_encoder):
        network.to(device).eval()
    return bundle


def check_device(device: str | torch.device) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        AltDiffusionError: it is `cuda`, and PyTorch finds no GPU.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise AltDiffusionError(
            f"device {device}", "is not there: PyTorch finds no GPU on this machine", "set device to cpu, or use a GPU"
        )


def load_tokenizer(local: Path, index: Mapping[str, Any], what: str) -> Any:
    """Return the tokenizer of a local model folder, of the class that its index names.

    Args:
        what: names the folder in errors.

    Raises:
        AltDiffusionError: transformers has no such class, or the tokenizer cannot be opened.
    """
    import transformers

    name = str(index["tokenizer"][1])
    kind = getattr(transformers, name, None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise AltDiffusionError(
            f"{what}, file model_index.json",
            f"names the tokenizer {name}, which transformers does not have",
            "use a base whose tokenizer is one of transformers' own",
        )
    return open_tokenizer(kind, local / "tokenizer", f"{what}, tokenizer", remedy="copy it as published")


def check_reads(text_encoder: Any, tokenizer: Any, what: str) -> None:
    """Refuse a tokenizer with ids or positions for which a text encoder has no vectors.

    Args:
        text_encoder: `AltCLIPTextModel` or `CLIPTextModel`.
        what: names the folder in errors.

    Raises:
        AltDiffusionError: the ids or positions exceed the encoder's; the error states both numbers.
    """
    config = text_encoder.config
    largest, rows = max(tokenizer.get_vocab().values(), default=0), int(config.vocab_size)
    if largest >= rows:
        raise AltDiffusionError(
            f"{what}, tokenizer",
            f"has token ids up to {largest:,}, its text encoder has a vocabulary of {rows:,}",
            "use the tokenizer that belongs to this text encoder",
        )
    length, positions = int(tokenizer.model_max_length), text_positions(config)
    if length > positions:
        raise AltDiffusionError(
            f"{what}, tokenizer",
            f"pads to {length} positions, its text encoder has {positions}",
            "set model_max_length in tokenizer_config.json to the length of the training (77 for Stable Diffusion)",
        )


def text_positions(config: Any) -> int:
    """Return how many tokens a text encoder reads at most; XLM-R counts its positions from after its pad id."""
    embeddings = int(config.max_position_embeddings)
    return embeddings - int(config.pad_token_id) - 1 if hasattr(config, "project_dim") else embeddings


def read_index(local: Path, folder: str | Path) -> dict[str, Any]:
    """Return the model_index.json of a local model folder.

    Args:
        folder: the folder's name in errors.

    Raises:
        AltDiffusionError: there is none, or it describes a pipeline with other parts than Stable Diffusion's.
    """
    what = f"model folder {folder}"
    if not (local / "model_index.json").is_file():
        raise AltDiffusionError(what, "holds no model_index.json", "give the folder of an export or of a base model")
    try:
        index = json.loads((local / "model_index.json").read_text())
    except ValueError as error:
        raise AltDiffusionError(
            f"{what}, file model_index.json", f"is not JSON ({first_line(error)})", "copy it again"
        ) from error
    return check_index(index, what)


def check_index(index: Any, what: str) -> dict[str, Any]:
    """Return the content of a model_index.json if it describes a pipeline of Stable Diffusion's parts.

    Args:
        what: names the folder in errors.

    Raises:
        AltDiffusionError: it is not a mapping, or describes another pipeline or other parts.
    """
    place, layout = f"{what}, file model_index.json", f"Stable Diffusion 1's or 2's layout: {', '.join(PARTS)}"
    if not isinstance(index, dict):
        raise AltDiffusionError(place, "is not a mapping", "copy it again")
    parts = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    others, lacking = sorted(parts - set(PARTS) - IGNORED), [name for name in PARTS if name not in parts]
    kind = index.get("_class_name")
    if kind not in _PIPELINES and (others or lacking or kind is not None):
        raise AltDiffusionError(
            place,
            f"describes a {kind}" + (f" with {', '.join(others)}" if others else ""),
            f"use a {_PIPELINES[0]}, a model of {layout}",
        )
    if others or lacking:
        raise AltDiffusionError(
            place,
            f"names {', '.join(others)}, which nothing here reads" if others else f"does not name {', '.join(lacking)}",
            f"use a model of {layout}",
        )
    return dict(index)


def text_encoder_class(index: Mapping[str, Any], what: str) -> Any:
    """Return transformers' class of the text encoder that a model_index.json names.

    Raises:
        AltDiffusionError: it names another one than the pipeline can use.
    """
    import transformers

    library, name = (index["text_encoder"] + ["", ""])[:2]
    if library != "transformers" or name not in ("CLIPTextModel", "AltCLIPTextModel"):
        raise AltDiffusionError(
            f"{what}, file model_index.json",
            f"names the text encoder {library}.{name}, which stock diffusers cannot use in this pipeline",
            "use a base of transformers' CLIPTextModel or AltCLIPTextModel; name a published AltDiffusion encoder in "
            "start.text_encoder, where it is converted",
        )
    return getattr(transformers, name)


def save_bundle(bundle: ModelBundle, folder: str | Path) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` opens, with safetensors only."""
    _pipeline(bundle).save_pretrained(str(folder), safe_serialization=True)


def save_configs(bundle: ModelBundle, folder: str | Path) -> None:
    """Write a model folder without the weights of its networks: index, configs, tokenizer and scheduler."""
    root = Path(folder)
    _pipeline(bundle).save_config(str(root))
    bundle.unet.save_config(str(root / "unet"))
    bundle.vae.save_config(str(root / "vae"))
    bundle.text_encoder.config.save_pretrained(str(root / "text_encoder"))
    bundle.tokenizer.save_pretrained(str(root / "tokenizer"))
    bundle.scheduler.save_pretrained(str(root / "scheduler"))


def _pipeline(bundle: ModelBundle) -> Any:
    quiet_libraries()
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=bundle.vae,
        text_encoder=bundle.text_encoder,
        tokenizer=bundle.tokenizer,
        unet=bundle.unet,
        scheduler=bundle.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
