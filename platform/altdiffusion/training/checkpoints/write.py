"""Writes one checkpoint: every worker its share of the tensors, the first of them COMPLETE.json last.

On a local (or shared) file system the folder is written under another name and renamed; on an object store the files
are put in place and COMPLETE.json makes them count.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import of_mapping, read_document
from altdiffusion.storage.seals import seal
from altdiffusion.training.checkpoints.format import (
    COMPLETE,
    FORMAT,
    STATE,
    TEMPORARY,
    TENSORS,
    Checkpoint,
    folder_of,
    of_document,
    shard_name,
    verify,
    whole_name,
)
from altdiffusion.training.checkpoints.tensor_file import write_tensors

Exchange = Callable[[Any], list[Any]]
"""Gives every rank the values of all ranks, in rank order."""


class CheckpointConflict(AltDiffusionError):
    """A whole checkpoint of the same step holds something else."""


def alone(value: Any) -> list[Any]:
    """Return the values of the only rank: the exchange of one rank."""
    return [value]


def share_out(sizes: Mapping[tuple[str, str], int], world: int) -> dict[tuple[str, str], int]:
    """Return which rank writes which tensor: the largest first, each to the rank that has the least so far."""
    load = [0] * world
    owner = {}
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        rank = load.index(min(load))
        owner[key] = rank
        load[rank] += sizes[key]
    return owner


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
    attempt: str = "",
    rank: int = 0,
    world: int = 1,
    exchange: Exchange = alone,
) -> Checkpoint:
    """Write a checkpoint, or leave nothing that counts as one. All ranks call it and get the same result.

    Args:
        tensors: file name -> tensor name -> tensor in host memory: this rank's share.
        state: becomes state.json.
        attempt: names this start of the workers; the same on all ranks.

    Raises:
        CheckpointConflict: a whole checkpoint with other content is there for this step.
        Exception: of the first rank that failed: no space, no permission, no connection.
    """
    final = folder_of(lake, run, step)
    local = files.is_local(final)
    # What is written does not count, or is not even in its final folder, until COMPLETE.json is there.
    place = _staging(final, attempt or uuid.uuid4().hex) if local else final
    try:
        mine = _attempt(lambda: _write_share(place, tensors, rank, world))
        shares = exchange(mine)
        _raise_first(shares)

        def publish() -> Checkpoint:
            listing: dict[str, Any] = {}
            table: dict[str, dict[str, Any]] = {}
            for share, _ in shares:
                listing |= share["files"]
                for name, entries in share["tensors"].items():
                    table.setdefault(name, {}).update(entries)
            for name in listing:
                _check_there(place, name, listing[name]["bytes"], local)
            head = {
                "format": FORMAT,
                "run": run,
                "step": step,
                "stage": stage,
                "config_fingerprint": config_fingerprint,
                "parents": list(parents),
            }
            for key, name, content in (("state", STATE, state), ("tensors", TENSORS, table)):
                data = files.canonical_json(content)
                head[key] = files.sha256_hex(data)
                listing[name] = {"sha256": head[key], "bytes": len(data)}
                _put(files.join(place, name), data)
            document = seal({**head, "files": listing})
            new = of_document(final, of_mapping(final, document))
            return _publish(place, new, files.canonical_json(document))

        outcomes = exchange(_attempt(publish) if rank == 0 else (None, None))
        _raise_first(outcomes[:1])
        written: Checkpoint = outcomes[0][0]
        return written
    finally:
        if local and rank == 0:
            shutil.rmtree(files.local_path(place), ignore_errors=True)


def _write_share(place: str, tensors: Mapping[str, Mapping[str, Tensor]], rank: int, world: int) -> dict[str, Any]:
    """Write this rank's files durably; return {"files": by file name, "tensors": by whole name and tensor name}."""
    share: dict[str, Any] = {"files": {}, "tensors": {}}
    local = files.is_local(place)
    if local:
        os.makedirs(files.local_path(place), exist_ok=True)
    elif files.exists(files.join(place, COMPLETE)):
        raise CheckpointConflict(
            f"checkpoint {place}", "is there already", "another run writes here: use another run name"
        )
    for name, named in sorted(tensors.items()):
        if not named:
            continue
        file = shard_name(name, rank, world)
        fs, path = files.filesystem(files.join(place, file))
        with open(path, "wb") if local else fs.open(path, "wb") as out:
            share["files"][file], share["tensors"][whole_name(file)] = write_tensors(out, named)
            out.flush()
            if local:
                os.fsync(out.fileno())
    if local:
        files.sync_folder(files.local_path(place))
    return share


def _publish(place: str, new: Checkpoint, complete: bytes) -> Checkpoint:
    """Make it count; an equal checkpoint that is there already is left alone, a broken one is replaced."""
    if not files.is_local(new.folder):
        _put(files.join(place, COMPLETE), complete)
        return new
    target = files.local_path(new.folder)
    _put(files.join(place, COMPLETE), complete)
    files.sync_folder(files.local_path(place))
    if os.path.exists(target):
        if not verify(new.folder):
            old = of_document(new.folder, read_document(files.join(new.folder, COMPLETE)))
            if old.digest != new.digest:
                raise CheckpointConflict(
                    f"checkpoint {new.folder}",
                    "exists already, complete and with other content",
                    "a step is never overwritten: use another run name, or remove that folder",
                )
            return old
        grave = files.local_path(_staging(new.folder, uuid.uuid4().hex))
        os.rename(target, grave)  # out of the way at once, then removed
        shutil.rmtree(grave, ignore_errors=True)
    os.rename(files.local_path(place), target)
    files.sync_folder(os.path.dirname(target))
    return new


def _check_there(place: str, name: str, size: int, local: bool) -> None:
    uri = files.join(place, name)
    try:
        found = os.path.getsize(files.local_path(uri)) if local else files.size_bytes(uri)
    except FileNotFoundError:
        found = -1
    if found != size:
        raise AltDiffusionError(
            f"checkpoint file {uri}",
            "was written by another worker and is not there",
            "use a lake that all machines reach: a shared folder or an object store",
        )


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except (OSError, AltDiffusionError) as error:
        return None, error
    except Exception as error:  # it has to travel to the other ranks
        return None, RuntimeError(f"{type(error).__name__}: {error}")


def _raise_first(outcomes: Sequence[tuple[Any, Exception | None]]) -> None:
    for _, error in outcomes:
        if error is not None:
            raise error


def _staging(final: str, attempt: str) -> str:
    parent, _, name = final.rpartition("/")
    return files.join(parent, f"{TEMPORARY}{attempt}-{name}")


def _put(uri: str, data: bytes) -> None:
    if not files.is_local(uri):
        files.write_atomic(uri, data)
        return
    with open(files.local_path(uri), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
