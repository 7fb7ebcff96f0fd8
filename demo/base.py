"""The demo's small base model, shipped as one file: how it was made, and how it becomes two model folders.

    python -m demo.base train --cache DIR --out demo/base.safetensors     about an hour on one CPU core, resumable
    python -m demo.base unpack --out DIR                                  seconds

`base-en` is a Stable Diffusion folder that draws the demo's concepts from English captions, 32 x 32 pixels.
`text-encoder-m18` is the multilingual encoder that replaces its English one; nothing but distillation joined the two,
so the swapped model draws poorly until the alignment stage has run. Both were made from the demo's own public data
(`demo.concepts`, `demo.images`) by `demo.base_train`, without any pair that is held out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.folder import CARD
from altdiffusion.diffusion.student import Student
from altdiffusion.errors import AltDiffusionError

FILE = Path(__file__).with_name("base.safetensors")
SHA256 = "e1a957870f9e23b39220136b9dc8d204bff41a0c864767a4c28fb9d264f5fd14"
COMMAND = "python -m demo.base train --cache DIR --out demo/base.safetensors"
ENGLISH_FOLDER, MULTILINGUAL_FOLDER = "base-en", "text-encoder-m18"
_FORMAT = "altdiffusion-base-2"
_CARD = """---
license: apache-2.0
---

# {name}

A small model of AltDiffusion Platform's demo, for tests and demonstrations alone; `demo/README.md` says how it was
made. It learned from names of Unicode CLDR (Unicode License v3), Noto Emoji (Apache-2.0) and Twemoji (CC-BY-4.0,
Twitter, Inc. and other contributors). Name Twemoji and CC-BY-4.0 where pictures drawn by it, or models made from it,
are shown.
"""


def pack(parts: dict[str, Any], tokenizer_json: bytes, path: Path) -> str:
    """Write the networks of `parts` ("unet", "vae", "english", "m18") as float16 with configs; return the SHA-256.

    float16 changes a weight by 0.05 % at most, which no measure of the demo sees, and halves the file.
    """
    from safetensors.torch import save

    tensors = {"tokenizer": torch.frombuffer(bytearray(tokenizer_json), dtype=torch.uint8)}
    for part, network in parts.items():
        for name, tensor in network.state_dict().items():
            tensors[f"{part}.{name}"] = tensor.to(torch.float16).contiguous()
    header = {"format": _FORMAT, "command": COMMAND, "configs": {part: _config(net) for part, net in parts.items()}}
    # One metadata key: their order in the file is not fixed.
    data = save(tensors, {"altdiffusion": json.dumps(header, sort_keys=True)})
    scratch = path.with_suffix(".part")
    scratch.write_bytes(data)
    os.replace(scratch, path)
    return hashlib.sha256(data).hexdigest()


def unpack(out: Path, file: Path = FILE, sha256: str | None = SHA256) -> tuple[Path, Path]:
    """Write `out`/base-en and `out`/text-encoder-m18 and return their paths; what is there already is kept.

    Args:
        file: what `pack` wrote.
        sha256: its digest; None takes any file.

    Raises:
        AltDiffusionError: the file is missing, or is not the pinned one.
    """
    if not file.is_file():
        raise AltDiffusionError(f"base model {file}", "does not exist", f"restore it from git, or make it: {COMMAND}")
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise AltDiffusionError(f"base model {file}", f"has SHA-256 {found}, not {sha256}", "restore it from git")
    targets = out / ENGLISH_FOLDER, out / MULTILINGUAL_FOLDER
    marker = out / "base.sha256"
    if marker.is_file() and marker.read_text().strip() == found and all(target.is_dir() for target in targets):
        return targets
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        _write_folders(data, Path(scratch))
        for target in targets:
            shutil.rmtree(target, ignore_errors=True)
            os.rename(Path(scratch) / target.name, target)
    marker.write_text(found + "\n")
    return targets


def _write_folders(data: bytes, out: Path) -> None:
    from diffusers import DDIMScheduler
    from safetensors.torch import load
    from transformers import XLMRobertaTokenizer

    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["altdiffusion"])
    if header["format"] != _FORMAT:
        raise AltDiffusionError("base model", f"has format {header['format']}, not {_FORMAT}", "restore it from git")
    tensors = load(data)
    networks = {part: make(header["configs"][part]) for part, make in _BUILD.items()}
    for part, network in networks.items():
        weights = {n.removeprefix(f"{part}."): t.float() for n, t in tensors.items() if n.startswith(f"{part}.")}
        network.load_state_dict(weights, strict=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        path.write_bytes(bytes(tensors["tokenizer"].numpy()))
        tokenizer = XLMRobertaTokenizer(tokenizer_file=str(path), model_max_length=_positions(header))
    bundle = models.ModelBundle(
        unet=networks["unet"],
        vae=networks["vae"],
        text_encoder=networks["english"],
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**models.scheduler_config()),
    )
    models.save_bundle(bundle, out / ENGLISH_FOLDER)
    _save_published(networks["m18"], tokenizer, out / MULTILINGUAL_FOLDER)
    for name in (ENGLISH_FOLDER, MULTILINGUAL_FOLDER):
        (out / name / CARD).write_text(_CARD.format(name=name), encoding="utf-8")


def _save_published(student: Student, tokenizer: Any, folder: Path) -> None:
    """Write the student as the published AltDiffusion-m18's text encoder is: both heads, XLM-R's names."""
    from safetensors.torch import save_file

    (folder / "text_encoder").mkdir(parents=True)
    config = student.config | {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = {
        name.replace("roberta.encoder.layers.", "roberta.encoder.layer.", 1): tensor.contiguous()
        for name, tensor in student.state_dict().items()
    }
    save_file(weights, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder / "tokenizer")


def _positions(header: dict[str, Any]) -> int:
    return int(header["configs"]["english"]["max_position_embeddings"])


def _config(network: Any) -> dict[str, Any]:
    """Return what builds the network again: the demo's settings with the values that training found."""
    if isinstance(network, Student):
        return network.config
    vocabulary = getattr(network.config, "vocab_size", 0)
    known = {
        "UNet2DConditionModel": models.unet_config_demo(),
        "AutoencoderKL": models.vae_config_demo() | {"scaling_factor": getattr(network.config, "scaling_factor", 1.0)},
        "CLIPTextModel": models.english_text_config_demo(vocabulary),
    }
    return known[type(network).__name__]


def _student(config: dict[str, Any]) -> Student:
    return Student(config, context=config["project_dim"]).eval()


_BUILD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unet": models.build_unet,
    "vae": models.build_vae,
    "english": models.build_english_text_encoder,
    "m18": _student,
}


def train(cache: Path, out: Path, work: Path) -> str:
    """Make the file again and return its SHA-256; stages whose file is in `work` are not repeated."""
    from demo import base_train

    work.mkdir(parents=True, exist_ok=True)
    tokenizer = base_train.make_tokenizer(cache, work)
    pictures = base_train.make_images(cache, work)
    vae = base_train.train_autoencoder(pictures, work)
    latents = base_train.latents_of(vae, pictures)
    texts = base_train.EnglishTexts(tokenizer, cache)
    english = base_train.train_english(texts, latents, cache, work, len(tokenizer))
    unet = base_train.train_unet(texts, english, latents, work)
    student = base_train.distil(texts, english, unet, tokenizer, cache, work)
    parts = {"unet": unet, "vae": vae, "english": english, "m18": student}
    return pack(parts, (work / "tokenizer" / "tokenizer.json").read_bytes(), out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.base", description="Makes or unpacks the demo's base model.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("train", help="make the shipped file again")
    making.add_argument("--cache", type=Path, required=True, help="the demo's cache folder")
    making.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    making.add_argument("--work", type=Path, help="folder for the stages' files; default: CACHE/base")
    making.add_argument("--threads", type=int, default=1)
    unpacking = commands.add_parser("unpack", help="write the two model folders")
    unpacking.add_argument("--out", type=Path, required=True)
    unpacking.add_argument("--file", type=Path, help="another file than the shipped one; its digest is not checked")
    given = parser.parse_args(arguments)
    try:
        if given.command == "train":
            torch.set_num_threads(given.threads)
            digest = train(given.cache, given.out, given.work or given.cache / "base")
            size = given.out.stat().st_size
            print(
                f"{given.out}  {size:,} bytes  sha256 {digest}"
                + ("" if digest == SHA256 else "  (not the shipped one)")
            )
        else:
            file, digest = (given.file, None) if given.file else (FILE, SHA256)
            for folder in unpack(given.out, file, digest):
                print(folder)
    except AltDiffusionError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
