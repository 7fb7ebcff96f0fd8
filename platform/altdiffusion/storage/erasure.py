"""Erasure of an old version: the files that no other version refers to are deleted permanently."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import ROLES, Dataset, Version
from altdiffusion.storage.documents import DIGEST
from altdiffusion.storage.erased import keep_counts
from altdiffusion.storage.garbage import remove_taken_down
from altdiffusion.storage.judges import TaughtJudge, discard_judges
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.tombstones import read_tombstones

IMAGE_FORMATS = ("png", "jpg", "webp")
"""Endings that a separate image file may have."""


@dataclass(frozen=True, kw_only=True)
class Erased:
    """The number and size of the deleted files."""

    files: int
    bytes: int
    judges: tuple[TaughtJudge, ...]
    """Judges that were deleted because they were, or may have been, trained on rows that were taken down."""


def erase(dataset: Dataset, version: Version) -> Erased:
    """Delete a version that is not the head: first its manifest, then the shards that only it had.

    Files that no manifest names are deleted too, of any age, where they hold rows that were taken down, and so are
    judges that were trained on such rows.

    No job may write to the dataset meanwhile. Units whose shards were deleted are done again if their job runs again.

    Raises:
        AltDiffusionError: the version is the head.
    """
    head = dataset.head()
    if head is not None and head.ref == version.ref:
        raise AltDiffusionError(
            version.ref.short, "is the head of its dataset", "publish another version first, or remove rows from it"
        )
    others = [dataset.open(digest) for digest in dataset.digests() if digest != version.ref.digest]
    kept = {(role, info.sha256) for other in others for role in ROLES for info in other.infos(role)}
    gone = [(role, info) for role in ROLES for info in version.infos(role) if (role, info.sha256) not in kept]
    keep_counts(version)
    images = _image_files(version, [info for role, info in gone if role == "shards"], others)
    below = dataset.folder_uri
    files.remove_tree(version.uri, below=below)
    files.remove_tree(named_folder(below, version.ref.digest), below=below)
    for role, info in gone:
        files.remove_tree(shards.shard_uri(files.join(below, role), info.sha256), below=below)
    for name in images:
        for image_format in IMAGE_FORMATS:
            files.remove_tree(files.join(below, "images", f"{name}.{image_format}"), below=below)
    tombstones = read_tombstones(dataset.lake_uri)
    left = remove_taken_down(dataset, tombstones)
    return Erased(
        files=len(gone) + len(images) + len(left),
        bytes=sum(info.bytes for _, info in gone) + sum(file.bytes for file in left),
        judges=tuple(discard_judges(dataset.lake_uri, tombstones)),
    )


def named_folder(folder_uri: str, digest: str) -> str:
    """Return the URI of the folder of a version's image files with readable names."""
    return files.within(folder_uri, "named", digest)


def _image_files(version: Version, gone: list[ShardInfo], others: list[Version]) -> set[str]:
    """Return the names of the separate image files of generated images that only these shards hold."""
    if version.manifest.kind != "generations":
        return set()
    folder = files.join(version.folder_uri, "shards")

    def images(infos: list[ShardInfo]) -> set[str]:
        names = {name for info in infos for name in read_columns(folder, info, ["image_sha256"])[0].to_pylist()}
        # A forged name does not become a path.
        return {name for name in names if isinstance(name, str) and DIGEST.fullmatch(name)}

    return images(gone) - images([info for other in others for info in other.shards])
