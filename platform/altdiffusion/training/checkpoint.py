"""Checkpoints: a folder that holds everything needed to continue exactly, whole or not there.

    <lake>/checkpoints/<run>/step-00000100/
        unet.safetensors       all weights of the UNet as trained; of distillation text_encoder.safetensors instead
        ema.safetensors        averages of the trained weights
        optimizer.safetensors  first and second moments of the trained weights (AdamW)
        state.json             step, counters, the config that decides the result, parents, metrics
        COMPLETE.json          written last: size and SHA-256 of every file, and the checkpoint's digest

There is no generator state: order, noise, timesteps and caption drop are keyed by the step and the position in the
training stream. Nothing in a checkpoint depends on time, host or path, so equal runs have equal digests.

On a local file system the folder is written under another name and renamed; on an object store the files are put in
place and COMPLETE.json makes them count. A step is never overwritten. A resume takes the newest checkpoint whose
files all have the recorded SHA-256; Ray's own record of checkpoints plays no part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files

FORMAT = "altdiffusion-checkpoint-1"
COMPLETE = "COMPLETE.json"
STATE = "state.json"
UNET = "unet.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
_STEP = "step-"
_TEMPORARY = ".tmp-"

Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: what COMPLETE.json says of it."""

    folder: str
    """URI."""
    run: str
    step: int
    stage: str
    config_fingerprint: str
    parents: tuple[str, ...]
    digest: str

    @property
    def ref(self) -> Ref:
        return Ref("checkpoint", f"{self.run}/{step_name(self.step)}", self.digest)

    def state(self) -> dict[str, Any]:
        """state.json."""
        state: dict[str, Any] = files.read_json(files.join(self.folder, STATE))
        return state

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of its safetensors files, in host memory."""
        uri = files.join(self.folder, name)
        try:
            if files.is_local(uri):
                return dict(safetensors.torch.load_file(files.local_path(uri)))
            return dict(safetensors.torch.load(files.read_bytes(uri)))
        except (SafetensorError, OSError) as error:
            raise AltDiffusionError(
                f"checkpoint file {uri}",
                f"cannot be read ({error})",
                "run the same command again: it looks for a whole one",
            ) from error


def step_name(step: int) -> str:
    """Folder name of a step."""
    return f"{_STEP}{step:08d}"


def run_folder(lake: str, run: str) -> str:
    """URI of a run's checkpoints."""
    return files.join(lake, "checkpoints", run)


def run_names(lake: str) -> list[str]:
    """Names of the runs that have checkpoints."""
    names = files.list_names(files.join(lake, "checkpoints"))
    return [name for name in names if steps(lake, name)]


def steps(lake: str, run: str) -> list[int]:
    """Steps for which a folder is there, ascending; whether they are whole is another question."""
    names = files.list_names(run_folder(lake, run))
    return sorted(int(name.removeprefix(_STEP)) for name in names if name.startswith(_STEP) and name[5:].isdigit())


def write(
    lake: str,
    *,
    run: str,
    step: int,
    stage: str,
    config_fingerprint: str,
    parents: Sequence[str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Writes a checkpoint, or leaves nothing that counts as one.

    Args:
        tensors: file name -> tensor name -> tensor.
        state: becomes state.json.

    Raises:
        AltDiffusionError: a whole checkpoint with other content is there for this step.
        OSError: the storage failed (no space, no permission, no connection).
    """
    final = files.join(run_folder(lake, run), step_name(step))
    local = files.is_local(final)
    parent = os.path.dirname(files.local_path(final)) if local else tempfile.gettempdir()
    os.makedirs(parent, exist_ok=True)
    staging = Path(parent) / f"{_TEMPORARY}{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        listing = {}
        for name, named in sorted(tensors.items()):
            data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in named.items()})
            listing[name] = _put(staging / name, data)
            del data
        listing[STATE] = _put(staging / STATE, files.canonical_json(state))
        head: dict[str, Any] = {
            "format": FORMAT,
            "files": listing,
            "parents": list(parents),
            "run": run,
            "step": step,
            "stage": stage,
            "config_fingerprint": config_fingerprint,
        }
        digest = files.sha256_hex(files.canonical_json(head))
        complete = files.canonical_json({**head, "digest": digest})
        _put(staging / COMPLETE, complete)
        written = _checkpoint(final, {**head, "digest": digest})
        old = _set_aside(written, local)
        if old is not None:
            return old
        if local:
            _sync_folder(staging)
            os.rename(staging, files.local_path(final))
            _sync_folder(Path(parent))
        else:
            fs, path = files.filesystem(final)
            for name in listing:
                fs.put_file(str(staging / name), f"{path}/{name}")
            files.write_atomic(files.join(final, COMPLETE), complete)
        return written
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def verify(folder: str) -> list[str]:
    """Reads every file of a checkpoint folder and says what is wrong with it; nothing if it is whole."""
    try:
        head = files.read_json(files.join(folder, COMPLETE))
        digest = head.pop("digest")
        listing = head["files"].items()
        wrong = files.sha256_hex(files.canonical_json(head)) != digest
    except FileNotFoundError:
        return [f"{COMPLETE} is missing"]
    except (AltDiffusionError, AttributeError, KeyError, TypeError) as error:
        return [f"{COMPLETE} is damaged ({error})"]
    if wrong:
        return [f"{COMPLETE} is damaged: its digest is not that of its content"]
    problems = []
    for name, expected in listing:
        try:
            found = describe(files.join(folder, name))
        except FileNotFoundError:
            problems.append(f"{name} is missing")
            continue
        if found["bytes"] != expected["bytes"]:
            problems.append(f"{name} has {found['bytes']} bytes instead of {expected['bytes']}")
        elif found["sha256"] != expected["sha256"]:
            problems.append(f"{name} is damaged: its SHA-256 is not the recorded one")
    return problems


def latest_verified(lake: str, run: str, warn: Warn = lambda text: None) -> Checkpoint | None:
    """The newest checkpoint of a run whose files are all as written; None if the run has none.

    Args:
        warn: told about every newer one that is not whole.

    Raises:
        AltDiffusionError: there are complete checkpoints, and every one is damaged.
    """
    damaged = []
    for step in reversed(steps(lake, run)):
        folder = files.join(run_folder(lake, run), step_name(step))
        problems = verify(folder)
        if not problems:
            return _checkpoint(folder, files.read_json(files.join(folder, COMPLETE)))
        warn(f"checkpoint {folder} is not whole and is not used: {'; '.join(problems)}; looking for the one before")
        if files.exists(files.join(folder, COMPLETE)):
            damaged.append(folder)
    if damaged:
        raise AltDiffusionError(
            f"run {run}",
            f"has no checkpoint that is whole ({len(damaged)} damaged)",
            f"restore one, or remove {run_folder(lake, run)} to start from the beginning",
        )
    return None


def open_step(lake: str, run: str, step: int) -> Checkpoint:
    """The checkpoint of one step, verified.

    Raises:
        AltDiffusionError: it is not there or not whole.
    """
    folder = files.join(run_folder(lake, run), step_name(step))
    problems = verify(folder)
    if problems:
        known = ", ".join(str(s) for s in steps(lake, run)) or "none"
        raise AltDiffusionError(
            f"checkpoint {folder}", "; ".join(problems), f"use another step; those of this run: {known}"
        )
    return _checkpoint(folder, files.read_json(files.join(folder, COMPLETE)))


def prune(lake: str, run: str, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints."""
    folders = [files.join(run_folder(lake, run), step_name(step)) for step in steps(lake, run)]
    complete = [folder for folder in folders if files.exists(files.join(folder, COMPLETE))]
    for folder in complete[: max(0, len(complete) - keep)]:
        files.remove_tree(files.join(folder, COMPLETE))  # first: half-removed, it counts no more
        files.remove_tree(folder)


def sweep(lake: str, run: str) -> None:
    """Removes what killed writers left behind. A run has one writer, which calls this first."""
    folder = run_folder(lake, run)
    if files.is_local(folder):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(files.local_path(folder)):
                if entry.name.startswith(_TEMPORARY):
                    files.remove_tree(entry.path)


def _checkpoint(folder: str, head: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        folder=folder,
        run=head["run"],
        step=head["step"],
        stage=head["stage"],
        config_fingerprint=head["config_fingerprint"],
        parents=tuple(head["parents"]),
        digest=head["digest"],
    )


def _set_aside(new: Checkpoint, local: bool) -> Checkpoint | None:
    """Makes room for `new`: an equal checkpoint in its place is returned, a broken one is removed."""
    if not files.exists(new.folder):
        return None
    if verify(new.folder):
        if local:  # first out of the way at once, then removed
            grave = os.path.join(os.path.dirname(files.local_path(new.folder)), f"{_TEMPORARY}{uuid.uuid4().hex}")
            os.rename(files.local_path(new.folder), grave)
            shutil.rmtree(grave, ignore_errors=True)
        else:
            files.remove_tree(new.folder)
        return None
    old = _checkpoint(new.folder, files.read_json(files.join(new.folder, COMPLETE)))
    if old.digest != new.digest:
        raise AltDiffusionError(
            f"checkpoint {new.folder}",
            "is there already, whole and with other content",
            "a step is never overwritten: use another run name, or remove that folder",
        )
    return old


def _put(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": files.sha256_hex(data), "bytes": len(data)}


def describe(uri: str) -> dict[str, Any]:
    """SHA-256 and size of a file, read in pieces."""
    fs, path = files.filesystem(uri)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
            size += len(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
