"""The images that prompts ask for: one row per image, with its settings and a key of everything that decides it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.config import semantic
from altdiffusion.generation.image_request import Request
from altdiffusion.generation.model import Model
from altdiffusion.generation.prompt_regions import regions_of, stored_regions
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.image_files.record import FileRecord, key_base, key_of
from altdiffusion.records import GENERATIONS, PROMPT_ROW

OWN = ("negative_prompt", "steps", "guidance_scale", "sampler")
"""Settings that a row of the prompts may have; the job's hold where it has none."""
ROWS = pa.schema([*PROMPT_ROW, *(GENERATIONS.field(name) for name in (*OWN, "regions", "row_key"))])
_LABELS = ("id", "language", "row_key")
"""Columns that do not decide a pixel."""


def image_counts(prompts: pa.Table, config: GenerateConfig) -> NDArray[np.int64]:
    """Return the number of images that each prompt asks for, int64 [N]."""
    return np.asarray(pc.fill_null(prompts["count"], config.count).to_numpy(), np.int64)


def image_rows(prompts: pa.Table, start: int, stop: int, config: GenerateConfig, model: Model) -> pa.Table:
    """Return images `start` to `stop` of a table of prompts as a table of `ROWS`.

    The images of one prompt follow each other, and their seeds are its seed, that plus 1, and so on.

    Args:
        prompts: with the columns of `records.PROMPTS`.
        config: its settings hold where a prompt has none of its own.
        model: its content is a part of the keys, and so is its reference where files state that.
    """
    columns = _settled(prompts, start, stop, config)
    base = key_base(model.content, _settings(config, model), str(model.ref) if config.file_record else None)
    keys = [key_of(base, row) for row in _deciding(columns)]
    columns = columns.append_column("row_key", pa.array(keys, pa.string()))
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


def file_records(rows: pa.Table, config: GenerateConfig, model: Model) -> dict[str, FileRecord]:
    """Return the records of a table of `ROWS` by row key; none where files carry no record."""
    if not config.file_record:
        return {}
    settings = _settings(config, model)
    return {
        key: FileRecord(model=str(model.ref), content=model.content, image=image, settings=settings, row_key=key)
        for key, image in zip(rows["row_key"].to_pylist(), _deciding(rows), strict=True)
    }


def request_record(request: Request, config: GenerateConfig, model: Model) -> FileRecord:
    """Return the record of an image that is drawn without a dataset."""
    settings = _settings(config, model)
    image = {**dataclasses.asdict(request), "negative_prompt": request.negative_prompt or None}
    del image["text_windows"]  # follows from the texts and the settings
    image.pop("regions")
    if request.regions:
        image["regions"] = stored_regions(request.regions)
    key = key_of(key_base(model.content, settings, str(model.ref)), image)
    return FileRecord(model=str(model.ref), content=model.content, image=image, settings=settings, row_key=key)


def _deciding(rows: pa.Table) -> list[dict[str, Any]]:
    """Return the values of each row that decide its image."""
    found = rows.drop_columns([name for name in _LABELS if name in rows.column_names]).to_pylist()
    # Rows without regions keep the keys that they had before there were any.
    return [{name: value for name, value in row.items() if name != "regions" or value is not None} for row in found]


def _settings(config: GenerateConfig, model: Model) -> dict[str, Any]:
    """Return the settings of a job that decide bytes, but for the model, known by its content, and what rows have.

    Adapters are known by their content and scale, too.
    """
    apart = ("model", "lora", "prompts", "count", *OWN)
    settings = {name: value for name, value in semantic(config).items() if name not in apart}
    if model.adapters:
        settings["lora"] = [{"content": one.content, "scale": one.scale} for one in model.adapters]
    return settings
