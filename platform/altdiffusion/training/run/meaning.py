"""What decides the result of a run: its settings, and the fingerprint over them and over what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altdiffusion.config import semantic
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order.run_key import RunKey


def meaning_of(config: TrainConfig, teacher: str | None) -> dict[str, Any]:
    """Return the settings of a config that decide the result.

    Settings that came later are left out where their value means what was the case before, so that runs of
    earlier versions keep their fingerprints.

    Args:
        config: resolved.
        teacher: URI of the folder of a distillation's own teacher.
    """
    meaning = semantic(config)
    for name in ("key", "continue_from"):
        if meaning[name] is None:
            del meaning[name]
    settings = meaning["distillation"]
    if settings is not None and (teacher is None or settings["teacher_output"] == "projected"):
        del settings["teacher_output"]
    return meaning


def fingerprint_of(
    config: TrainConfig,
    meaning: Mapping[str, Any],
    *,
    datasets: Sequence[Ref],
    mirrored: Sequence[Ref],
    start: Mapping[str, Any],
    key: RunKey,
) -> str:
    """Return SHA-256 (hex) over everything that decides the result of a run.

    Args:
        config: resolved; the weights of its datasets.
        meaning: its settings (see meaning_of).
        start: the content of what it starts from (see origin.Origin).
    """
    decides = {
        **meaning,
        "datasets": [
            {"ref": str(ref), "weight": dataset.weight} for ref, dataset in zip(datasets, config.datasets, strict=True)
        ],
    }
    if mirrored:
        decides["mirrored"] = [str(ref) for ref in mirrored]
    return files.sha256_hex(files.canonical_json({"config": decides, "start": start, **key.record()}))


def differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted keys whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for name in sorted(before.keys() | now.keys()):
            found += differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        return found
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and list(before) == list(now):
        return []
    return [] if before == now else [(key, before, now)]
