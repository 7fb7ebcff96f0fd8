"""The generation job as `benchmarks.generation` times it: units run in this process, without Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from altdiffusion.config import fingerprint, from_dict, semantic
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Unit, UnitWork
from altdiffusion.generation.generate_work import GenerateWork, generation_units
from altdiffusion.generation.loading import make_sampler
from altdiffusion.generation.model import Model
from altdiffusion.generation.prompts import PromptsWork, prompts_source, prompts_units
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.ledger_pages import read_ledger
from benchmarks.drawing import Contender, Row, Scale

CONTENT = "0" * 64
"""Digest of a model that is in memory alone."""


class InMemory(GenerateWork):
    """The job's work with a sampler that is there already."""

    def __init__(self, lake: str, dataset: str, model: Model, config: GenerateConfig, sampler: Any) -> None:
        super().__init__(lake, dataset, model, config)
        self._given = sampler

    def setup(self) -> None:
        self._sampler = self._given


def job(name: str, scale: Scale, rows: list[Row], settings: dict[str, Any]) -> Contender:
    """Return the job as a worker runs it, from the published prompts to the last ledger record.

    Texts are encoded, batches spilled, images encoded and written as files and into shards.

    Args:
        settings: fields of GenerateConfig.
    """
    sampler = make_sampler(scale.bundle, _config("none", settings))

    def ready(folder: Path) -> Callable[[], None]:
        lake = str(folder / "lake")
        config = _config(lake, settings)
        prompts, model = _prompts(lake, config, rows), _model(lake, scale)
        dataset = Lake(lake).dataset("generations")
        units = generation_units(prompts, model, config)
        work = InMemory(lake, "generations", model, config, sampler)
        ledger = dataset.ledger(fingerprint(config))

        def draw() -> None:
            _run(work, units, {"generations": ledger})
            made = sum(record.rows_out for record in read_ledger(ledger).of_units([unit.id for unit in units]))
            if made != len(rows):
                raise RuntimeError(f"{made} images of {len(rows)}; the others are rejects")

        return draw

    return Contender(name=name, ready=ready)


def _config(lake: str, settings: dict[str, Any]) -> GenerateConfig:
    tree = {"model": {"folder": f"{lake}/model"}, "prompts": {"file": f"{lake}/prompts.jsonl"}}
    return from_dict(GenerateConfig, tree | settings)


def _prompts(lake: str, config: GenerateConfig, rows: list[Row]) -> Version:
    """Return the published prompts."""
    Path(lake).mkdir(parents=True)
    lines = [json.dumps({"id": str(row.seed), **asdict(row)}) + "\n" for row in rows]
    Path(lake, "prompts.jsonl").write_text("".join(lines))
    dataset = Lake(lake).dataset("prompts")
    ledger, units = dataset.ledger(fingerprint(config.prompts)), prompts_units(config.prompts)
    _run(PromptsWork(lake, "prompts", config.prompts), units, {"prompts": ledger})
    records = read_ledger(ledger).of_units([unit.id for unit in units])
    return dataset.publish(
        kind="prompts", records=records, config=semantic(config.prompts),
        parents=[prompts_source(config.prompts)], fingerprint=fingerprint(config.prompts),
    )  # fmt: skip


def _model(lake: str, scale: Scale) -> Model:
    """Return the description of a model that is in memory; only its settings are written."""
    folder = Path(lake, "model")
    for part in ("unet", "vae", "scheduler"):
        getattr(scale.bundle, part).save_config(folder / part)
    return Model(uri=str(folder), content=CONTENT, ref=Ref("model", "benchmark", CONTENT))


def _run(work: UnitWork, units: list[Unit], ledgers: dict[str, Ledger]) -> None:
    with open(os.devnull, "w") as nowhere:
        run_units(work, units, ledgers, backend="inline", progress=Progress("benchmark", stream=nowhere))
