"""Copies of a version's shards next to its card: the folder that a hub or a web server publishes."""

from __future__ import annotations

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.cleansing import is_clean
from altdiffusion.storage.dataset import Version


def refuse_taken_down(version: Version) -> None:
    """Refuse to describe a version for the public that holds rows which were taken down from its lake.

    Raises:
        AltDiffusionError: it holds such rows, or a shard or the tombstones are missing or damaged.
    """
    if not is_clean(version):
        raise AltDiffusionError(
            version.ref.short,
            "holds rows that were taken down, and a card is for the public",
            f"describe the newest version (`altdiffusion dataset card {version.manifest.name}`); if that one holds "
            "them too, run `altdiffusion dataset remove` with the takedown's list again",
        )


def copy_shards(version: Version, folder: str) -> int:
    """Copy a version's shards to `folder`/shards, and return their bytes; what is there with its size is left alone.

    Raises:
        AltDiffusionError: a shard is missing or damaged, or cannot be written.
    """
    for place, info in enumerate(version.shards):
        target = files.join(folder, "shards", f"{info.sha256}.parquet")
        if files.exists(target) and files.size_bytes(target) == info.bytes:
            continue
        uri = version.shard_uri(place)
        try:
            data = files.read_bytes(uri)
        except FileNotFoundError as error:
            raise AltDiffusionError(f"file {uri}", "is missing", shards.REMEDY) from error
        if files.sha256_hex(data) != info.sha256:
            raise AltDiffusionError(f"file {uri}", "is damaged: its SHA-256 is not its name", shards.REMEDY)
        files.write_atomic(target, data)
    return sum(info.bytes for info in version.shards)
