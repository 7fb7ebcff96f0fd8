"""What is kept of an erased version: its manifest and its tables of shards and languages, without a single row.

    <lake>/takedowns/erased/<name>/<digest>/    manifest.json, shards.parquet, languages.json, languages.rows

These hold counts and digests only. A training run's order is a function of them, so what a checkpoint has seen can be
counted for ever, although the rows are gone.
"""

from __future__ import annotations

from typing import Never

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Manifest, Version
from altdiffusion.storage.documents import read_document
from altdiffusion.storage.tombstones import FOLDER, REMEDY

KEPT = ("shards.parquet", "languages.rows", "languages.json", "manifest.json")
"""Files of a version's folder that hold no content, in the order in which they are copied: the manifest last."""


class ErasedVersion(Version):
    """A version whose rows were erased: it has counts, and no row can be read."""

    @property
    def uri(self) -> str:
        """Folder of what was kept."""
        return _folder(self.lake_uri, self.manifest.name, self.ref.digest)

    def read_shard(self, index: int, columns: object = None) -> Never:
        """Refuse to read rows.

        Raises:
            AltDiffusionError: always.
        """
        raise AltDiffusionError(
            self.ref.short, "was erased: only its counts are left", "leave out what needs rows (--out)"
        )


def _folder(lake_uri: str, name: str, digest: str) -> str:
    return files.within(lake_uri, FOLDER, "erased", name, digest)


def keep_counts(version: Version) -> None:
    """Copy what has no content of a version that will be erased."""
    folder = _folder(version.lake_uri, version.manifest.name, version.ref.digest)
    for name in KEPT:
        uri = files.within(version.uri, name)
        if files.exists(uri):
            files.write_atomic(files.join(folder, name), files.read_bytes(uri))


def open_or_erased(lake: Lake, ref: Ref | str) -> Version:
    """Return a version, or what is left of it if it was erased.

    Raises:
        AltDiffusionError: the lake has neither, or a file is damaged.
    """
    parsed = ref if isinstance(ref, Ref) else Ref.parse(ref)
    try:
        return lake.version(parsed)
    except AltDiffusionError:
        kept = read_erased(lake, parsed)
        if kept is None:
            raise
        return kept


def read_erased(lake: Lake, ref: Ref) -> ErasedVersion | None:
    """Return what is left of a version that was erased; None where nothing is.

    Raises:
        AltDiffusionError: what is left is damaged.
    """
    uri = files.join(_folder(lake.uri, ref.name, ref.digest), "manifest.json")
    if not files.exists(uri):
        return None
    manifest = Manifest.of_document(read_document(uri, remedy=REMEDY))
    if manifest.digest != ref.digest:
        raise AltDiffusionError(f"manifest {uri}", "is damaged: its SHA-256 is not its version's digest", REMEDY)
    return ErasedVersion(lake.dataset(ref.name).folder_uri, manifest)
