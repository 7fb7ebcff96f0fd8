"""A lake with a dataset of small images, published without a job."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from altdiffusion.records import IMAGES
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord

ROWS = 23
NUMBERS = {"sample_id": lambda row: row - 5, "phash": lambda row: -row, "original_width": lambda row: 100 + row}


def body(row: int, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), row * 9, np.uint8)).save(out, format)
    return out.getvalue()


def publish(lake: str, *, formats: tuple[str, ...] = ("png",), kind: Any = "images") -> Version:
    """Publish a version of `ROWS` rows in shards of 7."""

    def value(field: pa.Field, row: int) -> Any:
        given = {
            "image": body(row),
            "image_format": formats[row % len(formats)],
            "image_sha256": f"{row:064x}",
            "caption": f"제목 {row}\n\"'",
            "language": ("ko", "uk")[row % 2],
            "width": 1000,
            "stored_width": 6,
            "stored_height": 4,
        }
        if field.name in given:
            return given[field.name]
        if field.name in NUMBERS:
            return NUMBERS[field.name](row)
        if field.nullable:
            return None
        return f"{field.name} {row}" if pa.types.is_string(field.type) else row

    table = pa.table([pa.array([value(f, row) for row in range(ROWS)], f.type) for f in IMAGES], schema=IMAGES)
    dataset = Lake(lake).dataset("images")
    shards = tuple(dataset.write_shard(table.slice(start, 7)) for start in range(0, ROWS, 7))
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=ROWS, shards=shards)
    return dataset.publish(kind=kind, records=[record], parents=[], config={}, fingerprint="f")
