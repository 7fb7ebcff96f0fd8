"""The images that prompts ask for: one row per image, with its settings and a key of everything that decides it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.config import semantic
from altdiffusion.generation.image_request import Request
from altdiffusion.generation.prompt_regions import regions_of
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.records import GENERATIONS, PROMPT_ROW
from altdiffusion.storage import files

OWN = ("negative_prompt", "steps", "guidance_scale", "sampler")
"""Settings that a row of the prompts may have; the job's hold where it has none."""
ROWS = pa.schema([*PROMPT_ROW, *(GENERATIONS.field(name) for name in (*OWN, "regions", "row_key"))])
_LABELS = ("id", "language", "row_key")
"""Columns that do not decide a pixel."""


def image_counts(prompts: pa.Table, config: GenerateConfig) -> NDArray[np.int64]:
    """Return the number of images that each prompt asks for, int64 [N]."""
    return np.asarray(pc.fill_null(prompts["count"], config.count).to_numpy(), np.int64)


def image_rows(prompts: pa.Table, start: int, stop: int, config: GenerateConfig, model_content: str) -> pa.Table:
    """Return images `start` to `stop` of a table of prompts as a table of `ROWS`.

    The images of one prompt follow each other, and their seeds are its seed, that plus 1, and so on.

    Args:
        prompts: with the columns of `records.PROMPTS`.
        config: its settings hold where a prompt has none of its own.
        model_content: digest of the model's weights, adapters included, a part of the keys.
    """
    columns = _settled(prompts, start, stop, config)
    deciding = columns.drop_columns([name for name in _LABELS if name in columns.column_names])
    columns = columns.append_column("row_key", pa.array(_keys(deciding, config, model_content), pa.string()))
    return pa.table([columns[field.name] for field in ROWS], schema=ROWS)


def count_batches(prompts: pa.Table, start: int, stop: int, config: GenerateConfig) -> int:
    """Return the number of batches in which images `start` to `stop` of a table of prompts are drawn as one unit."""
    rows = _settled(prompts, start, stop, config)
    guided = pc.greater(rows["guidance_scale"], 1.0)
    forms = rows.select(["width", "height", "steps", "sampler"]).append_column("guided", guided)
    places = {text: str([one.span for one in regions_of(text)]) for text in pc.unique(rows["regions"]).to_pylist()}
    regions = pa.array([places[text] for text in rows["regions"].to_pylist()], pa.string())
    forms = forms.append_column("regions", regions)
    counts = forms.group_by(forms.column_names).aggregate([([], "count_all")])["count_all"].to_pylist()
    return sum(-(-count // config.batch_rows) for count in counts)


def _settled(prompts: pa.Table, start: int, stop: int, config: GenerateConfig) -> pa.Table:
    """Return some images' rows without keys: the job's settings are filled in."""
    counts = image_counts(prompts, config)
    ends = np.cumsum(counts)
    images = np.arange(start, stop)
    places = np.searchsorted(ends, images, side="right")
    number = images - (ends[places] - counts[places])
    chosen = prompts.take(pa.array(places))
    columns: dict[str, Any] = {name: chosen[name] for name in chosen.column_names if name in ROWS.names}
    columns["seed"] = pa.array(np.asarray(chosen["seed"].to_numpy(), np.int64) + number)
    for name in OWN:
        columns[name] = _with_default(chosen, name, getattr(config, name))
    blank = pc.equal(columns["negative_prompt"], "")
    columns["negative_prompt"] = pc.if_else(blank, pa.scalar(None, pa.string()), columns["negative_prompt"])
    return pa.table({name: columns[name] for name in ROWS.names if name != "row_key"})


def requests_of(rows: pa.Table) -> list[Request]:
    """Return what the sampler draws, one request per row."""
    names = ("prompt", "negative_prompt", "seed", "width", "height", "steps", "guidance_scale", "sampler", "regions")
    found = rows.select(names).to_pylist()
    return [
        Request(**{**row, "negative_prompt": row["negative_prompt"] or "", "regions": regions_of(row["regions"])})
        for row in found
    ]


def _with_default(prompts: pa.Table, name: str, default: Any) -> pa.ChunkedArray:
    return pc.fill_null(prompts[name], pa.scalar(default, ROWS.field(name).type))


def _keys(deciding: pa.Table, config: GenerateConfig, model_content: str) -> list[str]:
    """Return the key of each row: SHA-256 (hex) over the model, the job's other settings, and the row's values."""
    settings = semantic(config)
    for name in (
        "model",
        "lora",
        "prompts",
        "count",
        *OWN,
    ):  # the weights are known by their content, the rest by the row
        settings.pop(name, None)
    common = hashlib.sha256(files.canonical_json({"model": model_content, **settings}))
    keys = []
    for row in deciding.to_pylist():
        one = common.copy()
        if row["regions"] is None:  # rows without them keep the keys that they had before there were regions
            del row["regions"]
        one.update(files.canonical_json(row))
        keys.append(one.hexdigest())
    return keys
