"""What a person should know about finished generations: texts that were cut off, images that needed another decoder."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.generation.prompt_regions import regions_of
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_columns import read_columns

THREADS = 16
REGIONS = ("regions", "region_tokens")
_SHOWN = 80


def warnings_of(version: Version) -> list[str]:
    """Return one line per kind of fault, with the number of rows and an example; none where all is well."""
    cut = float32 = 0
    example = ""
    for table in _columns(version):
        truncated = table.filter(pc.fill_null(table["truncated"], False))
        cut += truncated.num_rows
        float32 += table.num_rows - table["vae_dtype"].null_count
        if truncated.num_rows and not example:
            example = _longest(truncated.slice(0, 1).to_pylist()[0])
    lines = []
    if cut:
        lines.append(f"{cut:,} prompts are longer than the text encoder reads, and their ends are cut off; {example}")
    if float32:
        lines.append(f"{float32:,} images were not finite in the VAE, and were decoded again in float32")
    for table in version.iter_rejects():
        first = table.slice(0, 1).to_pylist()[0]
        lines.append(f"{sum(version.manifest.rejects_by_reason.values()):,} rejects, e.g. {first['detail']}")
        break
    return lines


def _longest(row: dict[str, Any]) -> str:
    """Return the longest text of a row, that of a region among them, with its number of tokens."""
    texts = [row["prompt"], *(region.prompt for region in regions_of(row.get("regions")))]
    tokens, text = max(zip([row["prompt_tokens"], *(row.get("region_tokens") or ())], texts, strict=True))
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f"{row['id']} has {tokens:,} tokens: {shown!r}"


def _columns(version: Version) -> Iterator[pa.Table]:
    """Yield the columns that warnings need, shard by shard; shards of earlier versions of this software lack them."""
    folder = files.join(version.folder_uri, "shards")
    names = ("id", "prompt", "prompt_tokens", "truncated", "vae_dtype")
    with ThreadPoolExecutor(THREADS) as pool:
        for table in pool.map(lambda info: read_columns(folder, info, (*names, *REGIONS)), version.shards):
            if set(names) <= set(table.column_names):
                yield table
