"""Checkpoints: a folder that holds everything needed to continue exactly, whole or not there.

    <lake>/checkpoints/<run>/step-00000100/
        unet.safetensors       all weights of the UNet as trained; in distillation text_encoder.safetensors instead
        ema.safetensors        averages of the trained weights
        optimizer.safetensors  first and second moments of the trained weights (AdamW)
        state.json             step, counters, the config that decides the result, parents, metrics
        tensors.json           dtype, shape and SHA-256 of every tensor
        COMPLETE.json          written last: size and SHA-256 of every file, and the checkpoint's digest

With several workers each writes its share of the tensors: unet-00001-of-00004.safetensors and so on. The
number of writers is not part of the checkpoint: the digest is over state.json and tensors.json, so N workers and one
worker with the same tensors write the same checkpoint, and any number of workers continues from it.

There is no generator state: order, noise, timesteps and caption drop are keyed by the step and the position in the
training stream. Nothing in a checkpoint depends on time, host or path, so equal runs have equal digests.

A step is never overwritten. A resume takes the newest checkpoint whose files all have the recorded SHA-256; Ray's own
record of checkpoints plays no part. `write` writes a checkpoint; `loop.saver` does so while the training continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import MAX_COUNT, NAME, Document, parse_document, read_document
from altdiffusion.storage.seals import check_seal

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "altdiffusion-checkpoint-2"
COMPLETE = "COMPLETE.json"
STATE = "state.json"
TENSORS = "tensors.json"
UNET = "unet.safetensors"
LORA = "lora.safetensors"
"""Takes the place of UNET where adapters alone are trained: the UNet stays what the run started from."""
TEXT_ENCODER = "text_encoder.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
_STEP = "step-"
TEMPORARY = ".tmp-"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")

Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, as COMPLETE.json describes it."""

    folder: str
    """URI."""
    run: str
    step: int
    stage: str
    config_fingerprint: str
    parents: tuple[str, ...]
    digest: str
    files: tuple[str, ...]
    """Names of its files."""
    sealed_state: bytes | None = None
    """Content of state.json where that was read, and verified, together with the seal."""

    @property
    def ref(self) -> Ref:
        return Ref("checkpoint", f"{self.run}/{step_name(self.step)}", self.digest)

    def check_digest(self, prefix: str) -> None:
        """Refuse a checkpoint that is not the one that was asked for.

        Args:
            prefix: beginning of the digest; empty is any.

        Raises:
            AltDiffusionError: the digest begins otherwise.
        """
        if not self.digest.startswith(prefix):
            raise AltDiffusionError(
                f"checkpoint {self.run}/{step_name(self.step)}@{prefix}",
                f"is not in the lake: that step of the run has the digest {self.digest[:12]}",
                "write that digest, or leave it out",
            )

    def state(self) -> dict[str, Any]:
        """Return state.json.

        Raises:
            AltDiffusionError: it is not an object, or the batches it leaves out are not pairs of counts.
        """
        uri = files.within(self.folder, STATE)
        state = read_document(uri) if self.sealed_state is None else parse_document(uri, self.sealed_state)
        skipped = state.value.get("skipped_batches", [])
        if not is_windows(skipped):
            raise state.wrong("skipped_batches", "a list of pairs of counts")
        return state.value

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one name (`unet.safetensors`), from all its shards, in host memory.

        Raises:
            AltDiffusionError: the checkpoint holds no such file, or it cannot be read.
        """
        found: dict[str, Tensor] = {}
        for file in self.files:
            if whole_name(file) == name:
                found |= self._read(file)
        if not found:
            raise AltDiffusionError(f"checkpoint {self.folder}", f"holds no {name}", "it is of another kind of run")
        return dict(sorted(found.items()))

    def _read(self, name: str) -> dict[str, Tensor]:
        import safetensors.torch  # here, so that questions about checkpoints do not wait a second for torch

        uri = files.within(self.folder, name)
        try:
            if files.is_local(uri):
                return dict(safetensors.torch.load_file(files.local_path(uri)))
            return dict(safetensors.torch.load(files.read_bytes(uri)))
        except (SafetensorError, OSError) as error:
            raise AltDiffusionError(
                f"checkpoint file {uri}",
                f"cannot be read ({error})",
                "run the same command again: it looks for a complete one",
            ) from error


def is_windows(value: Any) -> bool:
    """Return whether a value of a JSON file is a list of pairs of counts: ranges of batches."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) and 0 <= n <= MAX_COUNT for n in pair)
        for pair in value
    )


def shard_name(name: str, rank: int, world: int) -> str:
    """Return the file in which one of `world` workers writes its share of `name`."""
    stem = name.removesuffix(".safetensors")
    return name if world == 1 else f"{stem}-{rank + 1:05d}-of-{world:05d}.safetensors"


def whole_name(file: str) -> str:
    """Return the name that a file is a shard of."""
    match = _SHARD.fullmatch(file)
    return f"{match['stem']}.safetensors" if match else file


def step_name(step: int) -> str:
    """Return the folder name of a step."""
    return f"{_STEP}{step:08d}"


def run_and_step(ref: Ref) -> tuple[str, int]:
    """Return the run and the step that the reference of a checkpoint names."""
    run, _, step = ref.name.rpartition("/")
    return run, int(step.removeprefix(_STEP))


def run_folder(lake: str, run: str) -> str:
    """Return the URI of a run's checkpoints.

    Raises:
        AltDiffusionError: the name is not that of a run, or a link leads out of the lake.
    """
    if not NAME.fullmatch(run):
        raise AltDiffusionError(f"run {run[:200]!r}", "is not the name of a run", "give a plain name, without a path")
    return files.within(lake, "checkpoints", run)


def folder_of(lake: str, run: str, step: int) -> str:
    """Return the URI of one checkpoint."""
    return files.within(run_folder(lake, run), step_name(step))


def run_names(lake: str) -> list[str]:
    """Return the names of the runs that have checkpoints."""
    names = files.list_folders(files.join(lake, "checkpoints"))
    return [name for name in names if NAME.fullmatch(name) and steps(lake, name)]


def known_runs(lake: str) -> str:
    """Return the names of the runs that have checkpoints, as errors list them."""
    return ", ".join(run_names(lake)) or "none"


def steps(lake: str, run: str) -> list[int]:
    """Return the steps for which a folder exists, ascending; whether they are whole is not checked."""
    names = files.list_names(run_folder(lake, run))
    return sorted(int(name.removeprefix(_STEP)) for name in names if name.startswith(_STEP) and name[5:].isdigit())


def complete_steps(lake: str, run: str) -> list[int]:
    """Return the steps that have a checkpoint, ascending; their files are not read.

    A folder without COMPLETE.json is a remainder: of a writer that failed or was killed, or of a removal that was.
    """
    return [step for step in steps(lake, run) if _is_complete(lake, run, step)]


def _is_complete(lake: str, run: str, step: int) -> bool:
    return files.exists(files.join(folder_of(lake, run, step), COMPLETE))


def verify(folder: str) -> list[str]:
    """Read every file of a checkpoint folder and return what is wrong with it; an empty list if it is whole.

    Raises:
        AltDiffusionError: another version of this software wrote it.
    """
    try:
        document = read_document(files.within(folder, COMPLETE))
        if document.value.get("format") == "altdiffusion-checkpoint-1":
            raise _OtherFormat(
                f"checkpoint {folder}",
                "is of the format altdiffusion-checkpoint-1, which is no longer read",
                "export it with the version that wrote it and name the export as start.base, or use another run name",
            )
        of_document(folder, document)
        listing = dict(_files(document))
        try:
            check_seal(document)
        except AltDiffusionError as error:
            return [f"{COMPLETE} {error.problem}"]
    except FileNotFoundError:
        return [f"{COMPLETE} is missing"]
    except _OtherFormat:
        raise
    except (AltDiffusionError, ValueError) as error:
        return [f"{COMPLETE} is damaged ({error})"]
    problems = []
    for name, expected in listing.items():
        try:
            found = describe(files.within(folder, name))
        except FileNotFoundError:
            problems.append(f"{name} is missing")
            continue
        except AltDiffusionError as error:
            problems.append(f"{name} {error.problem}")
            continue
        if found["bytes"] != expected.count("bytes"):
            problems.append(f"{name} has {found['bytes']} bytes instead of {expected.count('bytes')}")
        elif found["sha256"] != expected.digest("sha256"):
            problems.append(f"{name} is damaged: its SHA-256 is not the recorded one")
    return problems


class _OtherFormat(AltDiffusionError):
    """A checkpoint of an earlier version: it is not damaged, and must not be passed over in silence."""


def _files(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield (name, size and SHA-256) of every file that a COMPLETE.json lists; each name is a plain one."""
    listing = document.object("files")
    for name in listing.value:
        if not NAME.fullmatch(name):
            raise document.wrong("files", "a mapping of plain file names")
        entry = listing.object(name)
        entry.count("bytes"), entry.digest("sha256")
        yield name, entry


def latest_verified(lake: str, run: str, warn: Warn = lambda text: None) -> Checkpoint | None:
    """Return the newest checkpoint of a run whose files are all as written; None if the run has none.

    Args:
        warn: called for every newer one that is not complete.

    Raises:
        AltDiffusionError: there are complete checkpoints, and every one is damaged.
    """
    damaged = []
    for step in reversed(steps(lake, run)):
        folder = folder_of(lake, run, step)
        problems = verify(folder)
        if not problems:
            return of_document(folder, read_document(files.join(folder, COMPLETE)))
        warn(f"checkpoint {folder} is not complete and is not used: {'; '.join(problems)}; looking for the one before")
        if files.exists(files.join(folder, COMPLETE)):
            damaged.append(folder)
    if damaged:
        raise AltDiffusionError(
            f"run {run}",
            f"has no checkpoint that is whole ({len(damaged)} damaged)",
            f"restore one, or remove {run_folder(lake, run)} to start from the beginning",
        )
    return None


def latest_intact(lake: str, run: str) -> Checkpoint | None:
    """Return the newest checkpoint of a run; None if the run has none.

    For those who would not notice that they got an older one: another run that starts from it, or a question about it.
    A folder without COMPLETE.json was never a checkpoint, and is passed over.

    Raises:
        AltDiffusionError: the newest checkpoint is damaged.
    """
    for step in reversed(steps(lake, run)):
        folder = folder_of(lake, run, step)
        problems = verify(folder)
        if not problems:
            return of_document(folder, read_document(files.join(folder, COMPLETE)))
        if files.exists(files.join(folder, COMPLETE)):
            raise AltDiffusionError(
                f"checkpoint {folder}",
                f"is the newest of run {run} and is damaged: {'; '.join(problems)}",
                "restore it, or remove the folder to use the one before",
            )
    return None


def open_step(lake: str, run: str, step: int) -> Checkpoint:
    """Return the checkpoint of one step, verified.

    Raises:
        AltDiffusionError: it is missing or not whole.
    """
    folder = folder_of(lake, run, step)
    problems = verify(folder)
    if problems:
        known = ", ".join(str(s) for s in steps(lake, run)) or "none"
        raise AltDiffusionError(
            f"checkpoint {folder}", "; ".join(problems), f"use another step; those of this run: {known}"
        )
    return of_document(folder, read_document(files.join(folder, COMPLETE)))


def open_sealed(lake: str, ref: Ref) -> Checkpoint:
    """Return the checkpoint that a reference names, of which only the seal and state.json were checked.

    Raises:
        AltDiffusionError: it is not in the lake, or one of the two is damaged.
    """
    (found,) = open_sealed_many(lake, [ref])
    if isinstance(found, AltDiffusionError):
        raise found
    return found


def open_sealed_many(lake: str, refs: Sequence[Ref]) -> list[Checkpoint | AltDiffusionError]:
    """Return what `open_sealed` does for each reference, or its error; all files are read along with each other."""
    folders = [_folder_of_ref(lake, ref) for ref in refs]
    uris = [files.within(one, name) for one in folders if isinstance(one, str) for name in (COMPLETE, STATE)]
    contents = iter(files.read_many(uris))
    return [
        one if isinstance(one, AltDiffusionError) else _sealed(one, ref, next(contents), next(contents))
        for one, ref in zip(folders, refs, strict=True)
    ]


def _folder_of_ref(lake: str, ref: Ref) -> str | AltDiffusionError:
    try:
        folder = folder_of(lake, *run_and_step(ref))
        for name in (COMPLETE, STATE):
            files.within(folder, name)
    except AltDiffusionError as error:
        return error
    return folder


def _sealed(
    folder: str,
    ref: Ref,
    complete: bytes | FileNotFoundError | AltDiffusionError,
    state: bytes | FileNotFoundError | AltDiffusionError,
) -> Checkpoint | AltDiffusionError:
    """Return the checkpoint that the content of its two files describes, or what is wrong with it."""
    remedy = "restore it from a copy, or use another step"
    try:
        if not isinstance(complete, bytes):
            raise complete
        document = parse_document(files.join(folder, COMPLETE), complete)
        check_seal(document)
        found = of_document(folder, document)
        found.check_digest(ref.digest)
        expected = document.object("files").object(STATE).digest("sha256")
        if not isinstance(state, bytes):
            raise state
        if files.sha256_hex(state) != expected:
            raise AltDiffusionError(f"file {folder}/{STATE}", "is damaged: its SHA-256 is not the recorded one", remedy)
    except FileNotFoundError as error:
        return AltDiffusionError(f"checkpoint {folder}", f"lacks a file ({error})", remedy)
    except AltDiffusionError as error:
        return error
    return replace(found, sealed_state=state)


def prune(lake: str, run: str, keep_last: int, keep_every: int = 0, needed: Set[int] = frozenset()) -> None:
    """Remove all complete checkpoints but the newest `keep_last`, those whose step divides by `keep_every`, and those
    that other runs need; and the remainders before the newest one, which no writer completes any longer."""
    there = steps(lake, run)
    complete = [step for step in there if _is_complete(lake, run, step)]
    for step in complete[: max(0, len(complete) - keep_last)]:
        if step not in needed and (not keep_every or step % keep_every):
            remove(lake, run, step)
    for step in there:
        if step < max(complete, default=0) and step not in complete:
            remove(lake, run, step)


def remove(lake: str, run: str, step: int) -> None:
    """Remove a checkpoint."""
    folder = folder_of(lake, run, step)
    files.remove_tree(files.join(folder, COMPLETE), below=folder)  # first: half-removed, it no longer counts
    files.remove_tree(folder, below=run_folder(lake, run))


def sweep(lake: str, run: str, step: int) -> None:
    """Remove what killed writers left behind. A run has one set of writers, of which one calls this first.

    Args:
        step: of the newest whole checkpoint, or 0: on an object store, whose files are written in place, everything
            after it is a remainder. (A damaged folder on a local file system stays until its step is written again.)
    """
    folder = run_folder(lake, run)
    if files.is_local(folder):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(files.local_path(folder)):
                if entry.name.startswith(TEMPORARY):
                    files.remove_tree(entry.path, below=files.local_path(folder))
    else:
        for later in steps(lake, run):
            if later > step:
                remove(lake, run, later)


def of_document(folder: str, document: Document) -> Checkpoint:
    """Return the checkpoint that a COMPLETE.json describes.

    Raises:
        AltDiffusionError: a value is not usable, or it is the document of another folder.
    """
    run, step = folder.rstrip("/").split("/")[-2:]
    if document.name("run") != run:
        raise document.wrong("run", repr(run))
    if step_name(document.count("step")) != step:
        raise document.wrong("step", f"the step of {step}")
    return Checkpoint(
        folder=folder,
        run=run,
        step=document.count("step"),
        stage=document.text("stage"),
        config_fingerprint=document.text("config_fingerprint"),
        parents=document.refs("parents"),
        digest=document.digest("digest"),
        files=tuple(sorted(name for name, _ in _files(document))),
    )


def describe(uri: str) -> dict[str, Any]:
    """Return SHA-256 and size of a file, read in pieces."""
    fs, path = files.filesystem(uri)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
            size += len(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}
