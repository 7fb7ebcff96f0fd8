"""A few small images: some of each language, and duplicates next to what they duplicate.

The version's digest and the rows' ids decide which ones. An image that its scores call unsafe is never shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.report import measures
from altdiffusion.curation.report.sample import (
    Files,
    Group,
    accepted,
    draw_groups,
    iter_images,
    keyed_order,
    read_groups,
)
from altdiffusion.curation.scoring.scored import Scored
from altdiffusion.storage.dataset import Version

MIN_GROUPS, MAX_GROUPS = 4, 64
_COLUMNS = (
    "sample_id", "image_sha256", "caption", "language", "language_score", "similarity", "punsafe", "aesthetic",
    "aesthetic_score", "original_width", "original_height",
)  # fmt: skip
Place = tuple[Group, int]
"""A row group and the row in it."""


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """A stored image, made small, with what is known of it."""

    language: str
    caption: str
    language_score: float
    similarity: float | None
    aesthetic: float | None
    size: tuple[int, int]
    """Width and height in pixels, as downloaded."""
    data_uri: str
    shown: tuple[int, int]
    """Width and height of the small image in pixels."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images by language, and the sizes of the images among which they were chosen."""

    images: Mapping[str, tuple[ShownImage, ...]]
    hidden: int
    """Rows passed over as unsafe, or as not scored where such images must not be shown."""
    looked_at: int
    """Rows that the images were chosen from."""
    stored_bytes: measures.Distribution


def choose_images(images: Version, config: ReportConfig, scores: Version | None = None) -> Gallery:
    """Choose images from as many row groups as it takes to have some of every language, up to MAX_GROUPS."""
    source = accepted(images)
    scored = Scored(scores, images) if scores is not None else None
    found: dict[str, list[tuple[int, Place]]] = {
        code: [] for code, rows in images.manifest.rows_by_language.items() if rows
    }
    tables: dict[Group, pa.Table] = {}
    hidden = 0
    for number, group in enumerate(_groups(source)):
        table = tables[group] = read_groups(source, group.file, [group.group], _COLUMNS)
        order = keyed_order(f"{source.key}:gallery", table["sample_id"].to_numpy())
        nsfw = None
        if scored is not None:
            start = group.group * source.infos[group.file].row_group_rows
            scores_of_rows = scored.of_rows(table, group.file, start)
            nsfw = scores_of_rows["nsfw"] if "nsfw" in scores_of_rows.column_names else None
        safe = may_be_shown(table, config, nsfw)
        hidden += int((~safe).sum())
        for row in np.flatnonzero(safe).tolist():
            found[table["language"][row].as_py()].append((int(order[row]), (group, row)))
        if number + 1 >= MIN_GROUPS and all(len(rows) >= config.pictures for rows in found.values()):
            break
    chosen = {code: [place for _, place in sorted(rows)[: config.pictures]] for code, rows in found.items()}
    lengths: list[pa.Array] = []
    made = read_images(source, tables, [place for places in chosen.values() for place in places], config, lengths)
    sizes = pa.table({"bytes": pa.chunked_array(lengths, pa.int32())})
    return Gallery(
        images={code: tuple(made[at] for at in places if at in made) for code, places in chosen.items()},
        hidden=hidden,
        looked_at=sum(table.num_rows for table in tables.values()),
        stored_bytes=measures.of_rows(sizes, {"stored_bytes": measures.STORED_BYTES})[0],
    )


def may_be_shown(table: pa.Table, config: ReportConfig, nsfw: Any = None) -> npt.NDArray[np.bool_]:
    """Return [rows] which images no score calls unsafe: neither the source's punsafe nor our NSFW score."""
    scores = [table["punsafe"].cast(pa.float32()), *([nsfw.cast(pa.float32())] if nsfw is not None else [])]
    worst = pc.max_element_wise(*scores)  # of those that are known
    passes: npt.NDArray[np.bool_] = np.asarray(
        pc.fill_null(pc.less(worst, config.hide_unsafe_from), config.show_unscored), bool
    )
    return passes


def read_images(
    source: Files,
    tables: Mapping[Group, pa.Table],
    places: Iterable[Place],
    config: ReportConfig,
    lengths: list[pa.Array] | None = None,
) -> dict[Place, ShownImage]:
    """Read the images at these places, without those that cannot be decoded.

    Args:
        tables: `_COLUMNS` of the row groups; groups without a place are read only for their `lengths`.
        lengths: filled with the bytes of every stored image of these groups.
    """
    wanted = set(places)
    made = {}
    for group, table in tables.items():
        rows = {row for at, row in wanted if at == group}
        if not rows and lengths is None:
            continue
        start = 0
        for batch in iter_images(source, group):
            if lengths is not None:
                lengths.append(pc.binary_length(batch))
            for row in sorted(rows & set(range(start, start + len(batch)))):
                image = _image(table, row, batch[row - start].as_py(), config)
                if image is not None:
                    made[group, row] = image
            start += len(batch)
    return made


def image_columns(source: Files, groups: Iterable[Group]) -> dict[Group, pa.Table]:
    """Read what is shown next to the images of some row groups."""
    return {group: read_groups(source, group.file, [group.group], _COLUMNS) for group in groups}


def _groups(source: Files) -> list[Group]:
    """Return groups from all over the version, in an order that its digest decides."""
    size = max((info.row_group_rows for info in source.infos), default=1)
    groups = draw_groups(source, MAX_GROUPS * size)
    order = np.argsort(keyed_order(f"{source.key}:groups", [g.file << 20 | g.group for g in groups]))
    return [groups[at] for at in order[:MAX_GROUPS]]


def _image(table: pa.Table, row: int, body: bytes, config: ReportConfig) -> ShownImage | None:
    small = _small(body, config.picture_side)
    if small is None:
        return None
    value: dict[str, Any] = {name: table[name][row].as_py() for name in _COLUMNS}
    ours = value["aesthetic_score"]
    return ShownImage(
        language=value["language"],
        caption=value["caption"],
        language_score=value["language_score"],
        similarity=value["similarity"],
        aesthetic=ours if ours is not None else value["aesthetic"],
        size=(value["original_width"], value["original_height"]),
        data_uri=small[0],
        shown=small[1],
    )


def _small(body: bytes, side: int) -> tuple[str, tuple[int, int]] | None:
    """Return a stored image as a data: URI of WebP, never enlarged; None if it cannot be decoded."""
    from PIL import Image

    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        with Image.open(io.BytesIO(body)) as image:
            image.draft("RGB", (side, side))
            rgb = image.convert("RGB")
        rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        rgb.save(sink, "WEBP", quality=72, method=4)
        return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode(), rgb.size
    return None
