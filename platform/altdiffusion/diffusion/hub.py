"""Models on the Hugging Face hub as inputs: `hf://owner/name@<commit>`, fetched once, checked, kept as a model folder.

A name without its commit may mean another model tomorrow, so only a full commit id is accepted. Only the files that
the pipeline reads are fetched: no other precision, no single-file copy, no safety checker. Every file is compared with
the commit's own listing (SHA-256 of large files, git's blob id of small ones).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from altdiffusion.diffusion.folder import publish, read_lineage
from altdiffusion.diffusion.licence import licence_of
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

SCHEME = "hf://"
Part = Literal["base", "configs", "text_encoder", "lora"]

_ID = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)@(?P<revision>[0-9a-f]{40})"
    r"(?:/(?P<file>(?:[\w\-][\w.\- ]*/)*[\w\-][\w.\- ]*\.safetensors))?"
)
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")
_VARIANTS = tuple(
    re.compile(
        rf"(?:diffusion_pytorch_model|model)(?:\.{name}(?:-\d{{5}}-of-\d{{5}})?\.safetensors"
        rf"|-\d{{5}}-of-\d{{5}}\.{name}\.safetensors|\.safetensors\.index\.{name}\.json)"
    )
    for name in ("fp32", "bf16", "fp16")
)
"""Weights in one other precision, in one file or in shards with their index: of a part that has no other ones."""
_PICKLED = re.compile(r"pytorch_model(?:-\d{5}-of-\d{5})?\.bin(?:\.index\.json)?")
_BINS = (
    re.compile(r"(?:diffusion_)?pytorch_model(?:-\d{5}-of-\d{5})?\.bin(?:\.index\.json)?"),
    re.compile(r"(?:diffusion_)?pytorch_model\.fp16\.bin"),
)
"""Pickled weights of a base, which are opened as tensors only (diffusion.stock_base)."""
_HALF = re.compile(r"model\.fp16\.safetensors|pytorch_model\.fp16\.bin")
"""Files in half precision, which are used where a publisher gives nothing else."""
_TOKENIZER = re.compile(r"[\w.\-]+\.(?:json|txt|model)")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers names the file of an adapter."""
_SUFFIXES: dict[Part, str] = {
    "base": "",
    "configs": "--configs",
    "text_encoder": "--text-encoder",
    "lora": "--lora",
}
"""What follows a model's name in the name of its folder, by the part that was fetched."""
_NETWORKS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class HubId:
    """A repository of models at one commit."""

    repo: str
    revision: str
    file: str = ""
    """Path of the one file that is meant; empty for the repository as a whole."""

    @classmethod
    def parse(cls, text: str) -> HubId:
        """Parse `hf://owner/name@<40 hex digits>`, with or without the path of a safetensors file after it.

        Raises:
            ValueError: the text is anything else; the message holds problem and remedy.
        """
        match = _ID.fullmatch(text)
        if match is None and re.match(r"hf://[\w.\-]+/[\w.\-]+@[0-9a-f]{40}/", text):
            raise ValueError(
                "names a file that is not safetensors, and no other is opened; "
                "name a .safetensors file after the commit, or the repository alone"
            )
        if match is None:
            pinned = f"{text.partition('@')[0]}@<commit>"
            raise ValueError(
                "is a hub id without its commit, which may mean another model tomorrow; "
                f"write {pinned} with the 40 hex digits of a commit in the repository's history"
            )
        return cls(match["repo"], match["revision"], match["file"] or "")

    @property
    def folder_name(self) -> str:
        """Name of the folder that holds this model in a lake."""
        folder = f"{self.repo.replace('/', '--')}--{self.revision[:12]}"
        stem = re.sub(r"[^A-Za-z0-9._\-]", "-", self.file.removesuffix(".safetensors"))
        return f"{folder}--{stem}" if stem else folder

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


def is_hub_id(uri: str) -> bool:
    """Return whether the text names a hub repository rather than a folder."""
    return uri.startswith(SCHEME)


def located(uri: str, lake: str, part: Part) -> str:
    """Return the URI of a model folder: `uri` itself, or what was fetched from the hub into `<lake>/models`.

    Raises:
        AltDiffusionError: as of `fetch`; or `uri` is a folder of huggingface_hub's cache that holds several models.
    """
    if is_hub_id(uri):
        return fetch(HubId.parse(uri), files.within(lake, "models"), part)
    return absolute(uri) if uri.endswith(".safetensors") else _snapshot(absolute(uri))


def _snapshot(folder: str) -> str:
    """Return the folder itself, or the one model in it where it is a folder of huggingface_hub's cache.

    Such a cache holds `models--<owner>--<name>/snapshots/<commit>/`.
    """
    commits = files.list_folders(files.join(folder, "snapshots"))
    if len(commits) == 1:
        return files.join(folder, "snapshots", commits[0])
    if commits:
        raise AltDiffusionError(
            f"model folder {folder}",
            f"is of huggingface_hub's cache and holds {len(commits)} commits",
            f"give one of {', '.join(f'{folder}/snapshots/{commit}' for commit in commits)}",
        )
    cached = [name for name in files.list_folders(folder) if name.startswith("models--")]
    if cached:
        raise AltDiffusionError(
            f"model folder {folder}",
            f"is huggingface_hub's cache, which holds {len(cached)} models",
            f"give one of {', '.join(f'{folder}/{name}' for name in cached[:5])}",
        )
    return folder


def at_hand(uri: str, lake: str, part: Part) -> bool:
    """Return whether `located` has nothing to fetch."""
    models = files.within(absolute(lake), "models")
    return not is_hub_id(uri) or read_lineage(_place(HubId.parse(uri), models, part)) is not None


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, since workers run in other folders; other URIs as they are."""
    return str(Path(uri).expanduser().resolve()) if "://" not in uri else uri.rstrip("/")


def unpinned(uri: str | None) -> tuple[str, str] | None:
    """Return problem and remedy of a text that names a model of the hub without its commit, else None."""
    if uri is None or not is_hub_id(uri):
        return None
    try:
        HubId.parse(uri)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        return problem, remedy
    return None


def _place(hub_id: HubId, models: str, part: Part) -> str:
    return files.join(models, hub_id.folder_name + _SUFFIXES[part])


def fetch(hub_id: HubId, models: str, part: Part) -> str:
    """Return the folder of a hub model below `models` (a folder or URI); fetch the model if it is not there yet.

    A lake fetches a model once; afterwards the model is there whether the hub still has it or not. The download uses
    huggingface_hub's own cache, which resumes a broken download; HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean
    there.

    Args:
        part: a whole pipeline or a single file (see diffusion.stock_base), the configs of a pipeline, a text encoder
            with its tokenizer (also as published: see diffusion.convert), or the file of an adapter.

    Raises:
        AltDiffusionError: the hub cannot be reached, lacks the repository or commit, or requires a token; or the
            repository lacks a part.
    """
    target = _place(hub_id, models, part)
    if read_lineage(target) is not None:
        return target
    listing = _listing(hub_id)
    kinds = {
        "base": _base_files, "configs": _config_files, "text_encoder": _text_encoder_files, "lora": _lora_files,
    }  # fmt: skip
    wanted = _one_file(hub_id, listing) if hub_id.file else kinds[part](hub_id, listing)
    snapshot = _download(hub_id, [*wanted, *(["README.md"] if "README.md" in listing else [])])

    def write(folder: Path) -> None:
        for name in wanted:
            place = folder / (_last(name) if hub_id.file else name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, place)
            _check(hub_id, place, listing[name])

    licence = licence_of(str(snapshot)) if "README.md" in listing else None
    publish(target, write, {"hub": str(hub_id), "licence": licence, "parents": []})
    return target


def _listing(hub_id: HubId) -> dict[str, Any]:
    """Return every file of the commit, by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _Naming(hub_id):
        tree = HfApi(endpoint=_endpoint()).list_repo_tree(hub_id.repo, recursive=True, revision=hub_id.revision)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _download(hub_id: HubId, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _Naming(hub_id):
        return Path(
            snapshot_download(
                hub_id.repo,
                revision=hub_id.revision,
                allow_patterns=[glob.escape(name) for name in names],
                endpoint=_endpoint(),
            )
        )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None  # read here: huggingface_hub reads it once, when it is imported


def _one_file(hub_id: HubId, listing: Iterable[str]) -> list[str]:
    if hub_id.file not in listing:
        found = sorted(name for name in listing if name.endswith(".safetensors"))
        raise _unfit(
            hub_id, f"holds no file {hub_id.file}", f"use one of {', '.join(found[:5]) or 'another repository'}"
        )
    return [hub_id.file]


def _base_files(hub_id: HubId, listing: Iterable[str]) -> list[str]:
    """Return the files of a Stable Diffusion folder: index, networks, tokenizer, scheduler; or a single file.

    Networks are taken in safetensors where the part has them, else as `.bin`, which are opened as tensors only.
    """
    names = set(listing)
    if "model_index.json" not in names:
        single = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
        if len(single) == 1 and not any(name.startswith("unet/") for name in names):
            return single
        raise _unfit(
            hub_id,
            f"holds no model_index.json, and {len(single)} files in safetensors at its top",
            f"name a repository in diffusers' layout, or one file: {SCHEME}{hub_id.repo}@<commit>/<file>.safetensors",
        )
    chosen = ["model_index.json"]
    for part in _NETWORKS:
        here = sorted(name for name in names if name.startswith(f"{part}/"))
        choices = ([name for name in here if kind.fullmatch(_last(name))] for kind in (_WEIGHTS, *_VARIANTS, *_BINS))
        found = next(filter(None, choices), [])
        if not found or f"{part}/config.json" not in names:
            raise _unfit(
                hub_id,
                f"holds no {part} in safetensors or .bin with its config.json",
                "use a mirror or a commit that has it",
            )
        chosen += [f"{part}/config.json", *found]
    return sorted([*chosen, *_tokenizer_and_scheduler(hub_id, names)])


def _config_files(hub_id: HubId, listing: Iterable[str]) -> list[str]:
    """Return the files of a Stable Diffusion folder without the weights of its networks."""
    names = set(listing)
    chosen = ["model_index.json", *(f"{part}/config.json" for part in _NETWORKS)]
    lacking = [name for name in chosen if name not in names]
    if lacking:
        raise _unfit(hub_id, f"holds no {lacking[0]}", "name a repository in diffusers' layout")
    return sorted([*chosen, *_tokenizer_and_scheduler(hub_id, names)])


def _tokenizer_and_scheduler(hub_id: HubId, names: set[str]) -> list[str]:
    tokenizer = [name for name in names if name.startswith("tokenizer/") and _TOKENIZER.fullmatch(_last(name))]
    if not tokenizer or "scheduler/scheduler_config.json" not in names:
        raise _unfit(hub_id, "lacks tokenizer or scheduler", "name a repository in diffusers' layout")
    return [*tokenizer, "scheduler/scheduler_config.json"]


def _lora_files(hub_id: HubId, listing: Iterable[str]) -> list[str]:
    """Return the one file of an adapter: of diffusers' name, or the only safetensors at the top."""
    found = sorted(name for name in listing if name.endswith(".safetensors") and "/" not in name)
    if ADAPTER_FILE in found:
        return [ADAPTER_FILE]
    if len(found) != 1:
        shown = f" ({', '.join(found[:5])})" if found else ""
        raise _unfit(
            hub_id, f"holds {len(found)} files in safetensors{shown}", f"use a repository with one, or {ADAPTER_FILE}"
        )
    return found


def _text_encoder_files(hub_id: HubId, listing: Iterable[str]) -> list[str]:
    """Return the files of an encoder and its tokenizer.

    They are in folders of their own, or at the top as transformers publishes a CLIP model.
    """
    names = set(listing)
    nested = "text_encoder/config.json" in names
    encoder, tokenizer = ("text_encoder/", "tokenizer/") if nested else ("", "")
    here = [name for name in names if name.startswith(encoder) and "/" not in name[len(encoder) :]]
    weights = [name for name in here if _WEIGHTS.fullmatch(_last(name))]
    weights = weights or [name for name in here if _PICKLED.fullmatch(_last(name))]  # opened with weights_only
    weights = weights or sorted(name for name in here if _HALF.fullmatch(_last(name)))[:1]
    vocabulary = [
        name
        for name in names
        if name.startswith(tokenizer) and "/" not in name[len(tokenizer) :] and _TOKENIZER.fullmatch(_last(name))
    ]
    vocabulary = [name for name in vocabulary if name not in weights]
    if f"{encoder}config.json" not in names or not weights or not vocabulary:
        raise _unfit(
            hub_id,
            "holds no text encoder with its tokenizer",
            "name a published AltDiffusion-m18 or AltCLIP-m18, or a model folder of ours",
        )
    return sorted({f"{encoder}config.json", *weights, *vocabulary})


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _unfit(hub_id: HubId, problem: str, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(f"hub model {hub_id}", problem, remedy)


def _check(hub_id: HubId, path: Path, entry: Any) -> None:
    """Check a file against the commit's listing: the SHA-256 of a large (LFS) file, git's blob id of a small one."""
    if entry.lfs is not None:
        with open(path, "rb") as file:
            actual, expected = hashlib.file_digest(file, "sha256").hexdigest(), entry.lfs.sha256
    else:
        data = path.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        expected = entry.blob_id
    if actual != expected:
        raise AltDiffusionError(
            f"hub model {hub_id}, file {entry.path}",
            f"arrived damaged: its hash is {actual[:12]}, the commit lists {str(expected)[:12]}",
            "remove it from huggingface_hub's cache (`hf cache rm`) and run the same command again",
        )


class _Naming:
    """A context manager that turns what huggingface_hub raises into one error with the model's name and a remedy."""

    def __init__(self, hub_id: HubId) -> None:
        self._id = hub_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from huggingface_hub import errors

        what = f"hub model {self._id}"
        lasting = "use a mirror of it, or name a local copy of the folder"
        gone = "is no longer on the hub, or asks for a token"
        if isinstance(error, errors.GatedRepoError):
            problem, remedy = "asks to accept its terms", "accept them on the hub's page and set HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            problem, remedy = "has no such commit", "take the 40 digits from the repository's history"
        elif isinstance(error, errors.RepositoryNotFoundError):
            problem, remedy = gone, f"{lasting}; a private one needs HF_TOKEN"
        elif isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code if error.response is not None else 0
            missing = status in (404, 410)
            problem = gone if missing else f"cannot be fetched (the hub answered {status})"
            remedy = lasting if missing else "run the same command again later; what has arrived is kept"
        elif isinstance(error, errors.OfflineModeIsEnabled):
            problem = "is not in the lake yet, and HF_HUB_OFFLINE forbids fetching it"
            remedy = "unset HF_HUB_OFFLINE, or name a local copy of the folder"
        elif isinstance(error, (OSError, RuntimeError)) or type(error).__module__.startswith(("httpx", "httpcore")):
            problem = f"cannot be fetched: the hub cannot be reached ({first_line(error)})"
            remedy = "check the connection and HF_ENDPOINT, or name a local copy of the folder"
        else:
            return
        raise AltDiffusionError(what, problem, remedy) from error
