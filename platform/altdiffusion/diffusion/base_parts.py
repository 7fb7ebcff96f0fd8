"""The parts of a published base, written as a folder of safetensors that `load_bundle` opens and checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from altdiffusion.diffusion.convert import convert_folder, is_published
from altdiffusion.diffusion.models import build_unet, build_vae, read_index, text_encoder_class
from altdiffusion.diffusion.published_files import read_weights
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.single_file import names_of, network_state
from altdiffusion.diffusion.single_file_kind import clip_prefix, kind_of_file, left_over
from altdiffusion.diffusion.weight_files import check_keys, read_settings
from altdiffusion.errors import AltDiffusionError, first_line

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNET_FILE, _TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


def fill_from_folder(source: Path, target: Path, what: str) -> None:
    """Write a published model folder with safetensors only, and with a text encoder of transformers.

    Args:
        what: names the source in errors.

    Raises:
        AltDiffusionError: a part is missing, a file holds more than tensors, or the encoder cannot be converted.
    """
    index = read_settings(source / "model_index.json", what)
    for part in ("unet", "vae"):
        _copy_network(source / part, target / part, f"{what}, {part}", _UNET_FILE)
    if is_published(str(source)):
        convert_folder(source, target)
        index |= {
            "text_encoder": ["transformers", "AltCLIPTextModel"],
            "tokenizer": ["transformers", "XLMRobertaTokenizer"],
        }
    else:
        _copy_network(source / "text_encoder", target / "text_encoder", f"{what}, text_encoder", _TEXT_FILE)
        _copy(source / "tokenizer", target / "tokenizer", what)
    _copy(source / "scheduler", target / "scheduler", what)
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    kept = {name: index[name] for name in parts if name in index}
    (target / "model_index.json").write_text(json.dumps({"_class_name": index.get("_class_name"), **kept}))


def _copy_network(source: Path, target: Path, what: str, name: str) -> None:
    """Copy config and weights of a network; pickles are opened as tensors only and written as safetensors."""
    if not (source / "config.json").is_file():
        raise AltDiffusionError(what, "holds no config.json", "copy the folder as published")
    if any(path.suffix == ".safetensors" for path in source.iterdir()):
        shutil.copytree(source, target)
        return
    target.mkdir(parents=True)
    shutil.copyfile(source / "config.json", target / "config.json")
    tensors = {key: tensor.clone().contiguous() for key, tensor in read_weights(source, "model folder").items()}
    save_file(tensors, target / name, {"format": "pt"})


def _copy(source: Path, target: Path, what: str) -> None:
    if not source.is_dir():
        raise AltDiffusionError(what, f"holds no {source.name}", "copy the folder as published")
    shutil.copytree(source, target)


def fill_from_file(file: Path, configs: Path, target: Path, what: str, configs_name: str) -> None:
    """Write a model folder from a single file and a folder of configs.

    Args:
        what: names the file in errors.
        configs_name: names the folder of configs in errors.

    Raises:
        AltDiffusionError: the file is not a checkpoint of Stable Diffusion 1 or 2; or a tensor of it is missing,
            unused, or not of the shape that the configs give.
    """
    quiet_libraries()
    kind_of_file(file, what)
    tensors = _read(file, what)
    index = read_index(configs, configs_name)
    settings = {
        part: read_settings(configs / part / "config.json", f"{configs_name}, {part}")
        for part in ("unet", "vae", "text_encoder")
    }
    unet, encoder = build_unet(settings["unet"], "meta"), text_encoder_class(index, configs_name)
    networks: dict[str, Any] = {"unet": unet, "vae": build_vae(settings["vae"], "meta")}
    if encoder.__name__ == "CLIPTextModel" and clip_prefix(tensors) is not None:
        with torch.device("meta"):
            networks["text_encoder"] = encoder(encoder.config_class(**settings["text_encoder"]))
    used: set[str] = set()
    for part, network in networks.items():
        state = network_state(network, unet, tensors, what)
        used |= names_of(network, unet, what).keys()
        (target / part).mkdir(parents=True)
        shutil.copyfile(configs / part / "config.json", target / part / "config.json")
        written = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        save_file(written, target / part / (_TEXT_FILE if part == "text_encoder" else _UNET_FILE), {"format": "pt"})
    check_keys(
        (),
        left_over(tensors, used, int(settings["text_encoder"].get("num_hidden_layers", 0))),
        what,
        "give the configs of the model that the file was trained from",
    )
    if "text_encoder" not in networks:
        if not any(path.suffix == ".safetensors" for path in (configs / "text_encoder").iterdir()):
            raise AltDiffusionError(
                what,
                f"holds no text encoder that {configs_name} names ({encoder.__name__}), and that folder has no weights "
                "of it either",
                "give the folder with text_encoder/model.safetensors in it, as `altdiffusion export --format "
                "single-file` writes it",
            )
        shutil.copytree(configs / "text_encoder", target / "text_encoder")
    for part in ("tokenizer", "scheduler"):
        _copy(configs / part, target / part, configs_name)
    shutil.copyfile(configs / "model_index.json", target / "model_index.json")


def _read(file: Path, what: str) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file, which may be held on the disk."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise AltDiffusionError(what, f"cannot be read ({first_line(error)})", "copy it again") from error
    odd = sorted(name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS and tensor.dim() > 1)
    if odd:
        raise AltDiffusionError(
            what,
            f"holds weights of a type that is not read: {odd[0]} ({str(tensors[odd[0]].dtype).removeprefix('torch.')})",
            "give the weights in float32, bfloat16 or float16",
        )
    return tensors
