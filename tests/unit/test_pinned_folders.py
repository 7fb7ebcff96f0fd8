"""Model folders elsewhere: copied once per machine, used only if they are the pinned ones."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from altdiffusion.diffusion import pinned_files
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.errors import AltDiffusionError

URI = "memory://models/vae"


@pytest.fixture()
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe({f"{URI}/config.json": b"{}", f"{URI}/deep/model.safetensors": b"weights"})
    yield memory
    memory.rm("/models", recursive=True)


def test_a_pinned_folder_is_copied_once(remote: fsspec.AbstractFileSystem) -> None:
    digest = content_digest(URI)
    place = Path(check_folder(URI, digest))
    assert place.name == digest and (place / "deep/model.safetensors").read_bytes() == b"weights"
    remote.pipe(f"{URI}/config.json", b"another")  # what is pinned and here is not asked for again
    assert check_folder(URI, digest) == str(place)
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == [digest]


def test_a_damaged_copy_is_replaced(remote: fsspec.AbstractFileSystem) -> None:
    digest = content_digest(URI)
    place = Path(check_folder(URI, digest))
    (place / "config.json").write_bytes(b"damaged")
    assert check_folder(URI, digest) == str(place) and (place / "config.json").read_bytes() == b"{}"


def test_without_a_pin_it_is_what_is_there_now(remote: fsspec.AbstractFileSystem) -> None:
    first = check_folder(URI, None)
    remote.pipe(f"{URI}/config.json", b"another")
    assert check_folder(URI, None) != first
    assert Path(check_folder(URI, None), "config.json").read_bytes() == b"another"


def test_other_files_than_the_pinned_ones_are_refused_with_both_digests(remote: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(AltDiffusionError, match=f"has digest {content_digest(URI)}, not {'0' * 64}"):
        check_folder(URI, "0" * 64)
    with pytest.raises(AltDiffusionError, match="is missing or empty"):
        check_folder("memory://models/nothing", None)


def test_a_process_that_hangs_with_the_copy_is_named_after_a_bound(
    remote: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_files, "COPY_TIMEOUT_S", 0.3)
    place = Path(check_folder(URI, None))
    (lock,) = place.parent.glob(".*.lock")
    with lock.open("w") as other:  # as a process that was stopped goes on to hold it
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AltDiffusionError, match="held by another process") as error:
            check_folder(URI, None)
    assert URI in error.value.what and f"fuser {lock}" in error.value.remedy
    assert check_folder(URI, None) == str(place)
