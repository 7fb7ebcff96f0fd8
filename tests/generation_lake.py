"""A small lake to generate in: a tiny model folder and a prompts file. Seconds, not minutes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from altdiffusion.config import fingerprint, from_dict, semantic
from altdiffusion.diffusion import models
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Backend, Pool, Unit
from altdiffusion.generation.generate_work import GenerateWork, generation_units
from altdiffusion.generation.model import Model, resolve_model
from altdiffusion.generation.prompts import PromptsWork, prompts_parents, prompts_units
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.ledger_pages import read_ledger
from tests import training_lake

CODES = ("en", "de", "ja")


def make_lake(root: Path, prompts: int = 30) -> str:
    """Make <root>/lake with models/base and prompts.jsonl; return it."""
    lake = root / "lake"
    models.save_bundle(training_lake.bundle(), lake / "models" / "base")
    rows = [
        {
            "id": f"p{i}", "language": CODES[i % 3], "prompt": f"word {i % 7} in {CODES[i % 3]}", "seed": i,
            "width": 24 if i % 5 == 0 else 16, "height": 16,
        }
        for i in range(prompts)
    ]  # fmt: skip
    (lake / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(lake)


def config(lake: str, **changes: Any) -> GenerateConfig:
    tree: dict[str, Any] = {
        "model": {"folder": f"{lake}/models/base"}, "prompts": {"file": f"{lake}/prompts.jsonl"},
        "steps": 2, "guidance_scale": 2.0, "batch_rows": 4, "rows_per_unit": 4,
    }  # fmt: skip
    return from_dict(GenerateConfig, tree | changes)


def quiet(label: str = "generate") -> Progress:
    return Progress(label, rows_name="images", stream=open(os.devnull, "w"))


def import_prompts(lake: str, settings: GenerateConfig) -> Version:
    dataset = Lake(lake).dataset("prompts")
    work = PromptsWork(lake, "prompts", settings.prompts)
    ledger = dataset.ledger(fingerprint(settings.prompts))
    units = prompts_units(settings.prompts)
    run_units(work, units, {"prompts": ledger}, backend="inline", progress=quiet("prompts"))
    records = list(read_ledger(ledger).of_units([unit.id for unit in units]))
    return dataset.publish(
        kind="prompts", records=records, parents=prompts_parents(settings.prompts),
        config=semantic(settings.prompts), fingerprint=fingerprint(settings.prompts),
    )  # fmt: skip


class DyingWork(GenerateWork):
    """Kills its own process at one unit, as often as there are files for it."""

    def __init__(self, lake: str, dataset: str, model: Model, settings: GenerateConfig, deaths: str) -> None:
        super().__init__(lake, dataset, model, settings)
        self._deaths = deaths

    def run(self, unit: Unit) -> UnitRecord:
        record = super().run(unit)
        left = Path(self._deaths)
        if unit.index == 3 and left.exists() and (count := int(left.read_text() or 0)) > 0:
            left.write_text(str(count - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return record


def generate(
    lake: str, settings: GenerateConfig, *, dataset: str = "drawn", backend: Backend = "inline",
    pool: Pool | None = None, deaths: str | None = None,
) -> Version:  # fmt: skip
    """Make published generations from a prompts file, as the job does."""
    prompts = import_prompts(lake, settings)
    model = resolve_model(settings.model, lake, settings.lora)
    work = (
        DyingWork(lake, dataset, model, settings, deaths)
        if deaths is not None
        else GenerateWork(lake, dataset, model, settings)
    )
    made = Lake(lake).dataset(dataset)
    units, ledger = generation_units(prompts, model, settings), made.ledger(fingerprint(settings))
    run_units(work, units, {dataset: ledger}, backend=backend, pool=pool, progress=quiet())
    records = list(read_ledger(ledger).of_units([unit.id for unit in units]))
    return made.publish(
        kind="generations", records=records, parents=[prompts.ref, *model.refs], config=semantic(settings),
        fingerprint=fingerprint(settings),
    )  # fmt: skip
