"""A base as it is published, as a folder that `load_bundle` opens; it is converted once, into `<lake>/models`.

Converted are

- a single file in the layout of A1111 and ComfyUI, with a folder of configs (diffusion.single_file);
- a folder whose weights are pickles (`.bin`), which are opened as tensors only and never run;
- AltDiffusion's own folder, whose text encoder is of a class that neither diffusers nor transformers has.

Every other folder is taken as it is. The SHA-256 of what was converted is in the new folder's name and lineage, and the
digest of its content enters the fingerprint of what uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from altdiffusion.diffusion import hub
from altdiffusion.diffusion.base_parts import fill_from_file, fill_from_folder
from altdiffusion.diffusion.folder import content_digest, model_ref, publish, read_lineage
from altdiffusion.diffusion.hub import absolute, located
from altdiffusion.diffusion.licence import licence_of
from altdiffusion.diffusion.models import load_bundle, local_folder, save_bundle
from altdiffusion.diffusion.single_file_kind import PICKLES, kind_of_file, refuse_pickle
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

_OWN_ENCODER = "RobertaSeriesModelWithTransformation"
_CONFIGS = ("model_index.json", "unet/config.json", "vae/config.json")
_READ_WHOLE = ("tokenizer/", "scheduler/", "text_encoder/")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What has to be converted."""

    uri: str
    """URI of the single file or of the folder."""
    configs: str | None = None
    """URI of the folder of a single file's configs."""
    single: bool = False

    @property
    def name(self) -> str:
        stem = posixpath.basename(self.uri.rstrip("/")).removesuffix(".safetensors")
        return re.sub(r"[^A-Za-z0-9._\-]", "-", stem) or "model"

    def digest(self) -> str:
        """Return the SHA-256 of everything that the conversion reads."""
        if not self.single:
            return content_digest(self.uri)
        fs, path = files.filesystem(self.uri)
        with fs.open(path, "rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        return files.sha256_hex(files.canonical_json({"file": own, "configs": _configs_digest(str(self.configs))}))

    def fill(self, folder: Path) -> None:
        """Write a folder that `load_bundle` opens."""
        if not self.single:
            with local_folder(self.uri) as local:
                fill_from_folder(local, folder, f"model folder {self.uri}")
            return
        with _local_file(self.uri) as file, local_folder(str(self.configs)) as configs:
            fill_from_file(file, configs, folder, f"model {self.uri}", f"folder of configs {self.configs}")


def stock_base(uri: str, lake: str, configs: str | None = None) -> str:
    """Return the URI of a folder that `load_bundle` opens: `uri` itself, or what was fetched or converted from it.

    Args:
        uri: a folder, a single file, or one of the hub.
        configs: a folder in diffusers' layout (or one of the hub) with the configs, tokenizer and scheduler of a single
            file. Its weights are not read, except the text encoder's where the file holds none.

    Raises:
        AltDiffusionError: the hub does not provide it; it is not a checkpoint of Stable Diffusion 1 or 2; a tensor is
            missing, unused or of another shape; or it is a pickle that holds more than tensors.
    """
    refuse_pickle(uri)
    source = _source(uri, lake, configs)
    if source is None:
        return located(uri, lake, "base")
    digest = source.digest()
    target = _target(source, lake, digest)
    if read_lineage(target) is None:
        origin = f"model:{source.name}@{digest}" if source.single else str(model_ref(source.uri, digest))
        licence = licence_of(posixpath.dirname(source.uri) if source.single else source.uri)
        lineage = {"converted_from": origin, "licence": licence, "parents": [origin]}
        publish(target, lambda staging: _save(source, staging), lineage)
    return target


def stock_base_at_hand(uri: str, lake: str, configs: str | None = None) -> bool:
    """Return whether `stock_base` has nothing to fetch or convert."""
    refuse_pickle(uri)
    if not _fetched(uri, lake, configs):
        return False
    source = _source(uri, lake, configs)
    return source is None or read_lineage(_target(source, lake, source.digest())) is not None


@contextlib.contextmanager
def tried_base(uri: str, lake: str, configs: str | None = None) -> Iterator[str | None]:
    """Yield the folder of `stock_base` without changing the lake; None where the hub would have to be asked.

    What is not converted yet is converted into a temporary folder, for the duration of the block.

    Raises:
        AltDiffusionError: as `stock_base`.
    """
    refuse_pickle(uri)
    if not _fetched(uri, lake, configs):
        yield None
    elif stock_base_at_hand(uri, lake, configs):
        yield stock_base(uri, lake, configs)
    else:
        source = _source(uri, lake, configs)
        assert source is not None
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / source.name
            folder.mkdir()
            source.fill(folder)
            yield str(folder)


def _save(source: _Source, staging: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / source.name
        folder.mkdir()
        source.fill(folder)
        save_bundle(load_bundle(folder), staging)


def _target(source: _Source, lake: str, digest: str) -> str:
    return files.within(absolute(lake), "models", f"{source.name}--{digest[:12]}--base")


def _fetched(uri: str, lake: str, configs: str | None) -> bool:
    return hub.at_hand(uri, lake, "base") and (configs is None or hub.at_hand(configs, lake, "configs"))


def _source(uri: str, lake: str, configs: str | None) -> _Source | None:
    """Return what has to be converted; None for a folder that is taken as it is."""
    place = located(uri, lake, "base")
    file = _single_file(place)
    own = None if configs is None else located(configs, lake, "configs")
    if file is None:
        if own is not None:
            raise AltDiffusionError(
                f"model {uri}", "is a folder with its own configs, and base_configs is given", "leave base_configs out"
            )
        return _Source(uri=place) if _must_convert(place) else None
    if own is None and place != file and files.exists(files.join(place, "model_index.json")):
        own = place
    if not files.exists(file):
        raise AltDiffusionError(f"model {file}", "does not exist", "check the path")
    if own is None or not files.exists(files.join(own, "model_index.json")):
        with _local_file(file) as local:
            kind = kind_of_file(local, f"model {file}")
        raise AltDiffusionError(
            f"model {file}",
            f"is a single file of {kind}, and "
            + ("no base_configs is given" if own is None else f"{own} holds no model_index.json")
            + ": the file states neither tokenizer nor noise schedule",
            "set base_configs to a folder in diffusers' layout, or hf://owner/name@<commit>, of the model that the "
            "file was trained from; its weights are not read",
        )
    return _Source(uri=file, configs=own, single=True)


def _single_file(place: str) -> str | None:
    """Return the URI of a single file, named itself or as the only weights at the top of a folder without a UNet."""
    if place.endswith(".safetensors"):
        return place
    names = [name for name in files.list_names(place) if name.endswith((".safetensors", *PICKLES))]
    if len(names) != 1 or _weights(place, "unet"):
        return None
    refuse_pickle(files.join(place, names[0]))
    return files.join(place, names[0])


def _weights(folder: str, part: str) -> list[str]:
    return [name for name in files.list_names(files.join(folder, part)) if name.endswith((".safetensors", ".bin"))]


def _must_convert(folder: str) -> bool:
    uri = files.join(folder, "model_index.json")
    index = files.read_json(uri) if files.exists(uri) else None
    if not isinstance(index, dict):
        return False  # what is wrong with it is named where the folder is opened
    encoder = index.get("text_encoder")
    if isinstance(encoder, list) and _OWN_ENCODER in encoder:
        return True
    weights = [_weights(folder, part) for part in ("unet", "vae", "text_encoder")]
    return any(names and not any(name.endswith(".safetensors") for name in names) for names in weights)


def _configs_digest(folder: str) -> str:
    """Return the digest of what is read of a folder of configs; its large files are those of the networks."""
    fs, path = files.filesystem(folder)
    root = path.rstrip("/")
    names = [str(name)[len(root) + 1 :] for name in fs.find(root)]
    read = [name for name in names if name in _CONFIGS or name.startswith(_READ_WHOLE)]
    listing = {}
    for name in sorted(read):
        with fs.open(f"{root}/{name}", "rb") as stream:
            listing[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return files.sha256_hex(json.dumps(listing, sort_keys=True).encode())


@contextlib.contextmanager
def _local_file(uri: str) -> Iterator[Path]:
    """Yield a file on the local file system; a remote one is copied for the duration of the block."""
    if files.is_local(uri):
        yield Path(files.local_path(uri))
        return
    fs, path = files.filesystem(uri)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / posixpath.basename(path)
        fs.get_file(path, str(local))
        yield local
