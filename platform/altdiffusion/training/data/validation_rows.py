"""The held-out rows that a run measures its loss on: some of each language, read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Version
from altdiffusion.training.data.layout import Layout, Rows
from altdiffusion.training.data.loader import RowGroups
from altdiffusion.training.order.language_rows import language_rows
from altdiffusion.training.order.permutation import I64

_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ValidationRows:
    """Rows of held-out data, one language after the other."""

    version: Version
    languages: tuple[str, ...]
    """Codes, in order."""
    language: torch.Tensor
    """int64 [R]: number of each row's language in `languages`."""
    tensors: Rows
    """Tensors [R, ...] by name, as the layout defines them."""


def read_rows(version: Version, layout: Layout, per_language: int) -> ValidationRows:
    """Read up to `per_language` rows of each language, spread evenly over the version.

    Raises:
        AltDiffusionError: the version is of another kind, empty, or damaged.
    """
    groups = RowGroups([version], layout, cache_bytes=_CACHE_BYTES)
    try:
        chosen: list[I64] = []
        numbers: list[int] = []
        codes: list[str] = []
        for code, rows in sorted(language_rows(version).items()):
            if len(rows):
                spread = np.unique(np.linspace(0, len(rows) - 1, min(per_language, len(rows))).round().astype(np.int64))
                chosen.append(rows[spread].astype(np.int64))
                numbers += [len(codes)] * len(spread)
                codes.append(code)
        wanted = np.concatenate(chosen)
        ascending = np.argsort(wanted, kind="stable")
        read = groups.empty(len(wanted))
        groups.gather(wanted[ascending], read)
        back = torch.from_numpy(np.argsort(ascending, kind="stable"))
        return ValidationRows(
            version=version,
            languages=tuple(codes),
            language=torch.tensor(numbers, dtype=torch.int64),
            tensors={name: tensor[back] for name, tensor in read.items()},
        )
    finally:
        groups.close()


def check_held_out(held_out: Version, training: Sequence[Version]) -> None:
    """Refuse rows as held out of which an image is trained on.

    Versions that one encode job has divided by `held_out` need no look. For others, the SHA-256 of all images are
    compared, one shard at a time.

    Raises:
        AltDiffusionError: names the dataset, and how many images it has in common.
    """
    others = [version for version in training if not _divided(held_out, version)]
    if not others:
        return
    mine = pc.unique(pa.chunked_array(_hashes(held_out), pa.string()))
    for version in others:
        common: set[str] = set()
        for hashes in _hashes(version):
            common.update(hashes.filter(pc.is_in(hashes, value_set=mine)).to_pylist())
        if common:
            raise AltDiffusionError(
                f"validation.dataset {held_out.ref.short}",
                f"has {len(common):,} of its {len(mine):,} images in common with {version.ref.short}, which the run "
                "trains on",
                "encode with held_out: 0.01, which makes <name>-held-out of images that <name> does not have",
            )


def _divided(held_out: Version, training: Version) -> bool:
    mine, other = held_out.manifest, training.manifest
    return (
        bool(mine.config.get("takes_held_out"))
        and not other.config.get("takes_held_out")
        and mine.config.get("held_out") == other.config.get("held_out")
    )


def _hashes(version: Version) -> Iterator[pa.Array]:
    """Yield the SHA-256 of the images of a version, piece by piece."""
    for table in version.iter_tables(["image_sha256"]):
        yield from table["image_sha256"].chunks
