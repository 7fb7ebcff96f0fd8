"""What the judges of an evaluation learn from, and what they must not share with the models that they judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow.compute as pc
import torch

from altdiffusion.config import added, operational
from altdiffusion.constraints import Checked, Constraint, Invalid, at_least, between
from altdiffusion.diffusion.folder import read_lineage
from altdiffusion.diffusion.hub import at_hand
from altdiffusion.diffusion.stock_base import stock_base_at_hand
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.judge import SIDE
from altdiffusion.evaluation.labels import LabelledImages, find_labelled
from altdiffusion.evaluation.shared_images import Shared, find_shared, summary
from altdiffusion.evaluation.training_data import TrainingData, training_data
from altdiffusion.generation.model import Model, resolve_model
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.lineage.graph import scan
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.likeness import ALIKE_BITS
from pipelines.cases import Cases

_SIDES = 8  # pixels that every side is a multiple of: the factor of Stable Diffusion's VAE
_SIDE = Constraint(
    lambda value: value == "own" or (isinstance(value, int) and 8 <= value <= 1024 and value % _SIDES == 0),
    "is neither own nor a multiple of 8 from 8 to 1024",
    "give e.g. 32, 224 or own",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig(Checked):
    """The classifier that names images. It is trained on real images; the generator never sees it."""

    seed: int = 0
    """Key of the judges' weights and of their augmentation."""
    seeds: Annotated[int, at_least(1)] = added(1)
    """Number of judges, of the seeds `seed`, that plus 1, and so on; a case's outcome is the mean over them."""
    steps: Annotated[int, at_least(1)] = 700
    """Updates that a judge is trained for."""
    side: Annotated[int | Literal["own"], _SIDE] = added(SIDE)
    """Height and width of the images that the judge reads, in pixels; `own` is the shortest side of the labelled images
    and the cases, at most `side_at_most`."""
    side_at_most: Annotated[int, between(8, 1024)] = added(256)
    """Largest side that `own` chooses."""
    device: Literal["cpu", "cuda"] = added("cpu")
    """Where the judges are trained and used, in the job's own process."""
    shared: Literal["refuse", "allow"] = operational("refuse")
    """What happens if a judge or control image is among those that a state has learned from: the job refuses, or states
    it in the table."""
    near_bits: Annotated[int | None, between(0, 64, "it counts differing bits of 64; give e.g. 4")] = operational(
        ALIKE_BITS
    )
    """Bits of 64 in which the perceptual hashes of two such images may differ; null compares files alone."""
    compared_at_most: Annotated[int, at_least(1)] = operational(50_000)
    """Distinct images of a state's training data that are compared one by one. If there are more, files alone are
    compared (by SHA-256), and memorisation is not measured."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.side == "own" and self.side_at_most % _SIDES:
            yield Invalid("side_at_most", f"is not a multiple of {_SIDES}", "give e.g. 256")


def check_device(judge: JudgeConfig) -> None:
    """Refuse a device that this process does not have.

    Raises:
        AltDiffusionError: there is no such device.
    """
    if judge.device == "cuda" and not torch.cuda.is_available():
        raise AltDiffusionError(
            "judge.device cuda", "is not there: this process sees no GPU", "set judge.device: cpu, or give it a GPU"
        )


def labelled_images(datasets: Sequence[str], labels: str, lake: Lake, concepts: Sequence[str]) -> LabelledImages:
    """Return the labelled images of some datasets, after a check that a judge can learn each concept from them.

    Raises:
        AltDiffusionError: as `find_labelled`, or no image shows one of the concepts.
    """
    found = find_labelled([lake.version(name) for name in datasets], labels)
    shown = found.concepts("judge")
    missing = [concept for concept in concepts if concept not in shown]
    if missing:
        others = f", nor of {len(missing) - 1:,} other concepts of the cases" if len(missing) > 1 else ""
        raise AltDiffusionError(
            f"labels {labels}",
            f"name no image of {', '.join(missing[:5])} in {_named(found)}{others}, which no judge could name",
            "label images of each concept, or take its cases out",
        )
    return found


def _named(found: LabelledImages) -> str:
    return ", ".join(version.ref.short for version in found.versions)


def judge_side(judge: JudgeConfig, labelled: LabelledImages, cases: Cases | None) -> int:
    """Return the side of the images that the judges read, in pixels."""
    if judge.side != "own":
        return judge.side
    sides = [labelled.side, judge.side_at_most]
    if cases is not None:
        sides += [pc.min(cases.prompts.accepted[side]).as_py() for side in ("width", "height")]
    return max(_SIDES, min(sides) // _SIDES * _SIDES)


def judge_lines(labelled: LabelledImages, side: int, concepts: Sequence[str]) -> list[str]:
    """Return what the judges learn from and answer with, and which controls there are."""
    learned, control = labelled.concepts("judge"), labelled.concepts("control")
    asked = set(concepts) & learned.keys()
    rows = [
        f"judge  learns from {labelled.rows:,} rows of {_named(labelled)} that show {len(learned):,} concepts, and "
        f"answers with {len(asked):,} of them; it reads {side} pixels"
    ]
    for use, counts in (("control", control), ("generator", labelled.concepts("generator"))):
        if counts:
            inside = sum(count for concept, count in counts.items() if concept in asked)
            rows.append(f"judge  {inside:,} of {sum(counts.values()):,} {use} images show a concept of the cases")
    if not any(concept in asked for concept in control):
        rows.append("warning  no image is labelled control: the control of the table will be training accuracy")
    return rows


def learned_from(lake: Lake, states: Mapping[str, GenerateConfig]) -> dict[str, TrainingData]:
    """Return by state what its model and adapters have learned from.

    Raises:
        AltDiffusionError: a model cannot be used.
    """
    graph = scan(lake.uri)
    return {name: training_data(graph, _origins(config, lake.uri)) for name, config in states.items()}


def _origins(config: GenerateConfig, lake_uri: str) -> list[str]:
    """Return what a state's model and adapters were made from, as references."""
    remote = [one.folder for one in config.lora if not at_hand(one.folder, lake_uri, "lora")]
    folder = config.model.folder
    if folder is not None and not stock_base_at_hand(folder, lake_uri, config.model.base_configs):
        remote.append(folder)
    if remote:  # they are fetched when the job draws, and the lake's lineage does not know them
        return remote
    model = resolve_model(config.model, lake_uri, config.lora)
    return [*_made_from(model), *(str(one.ref) for one in model.adapters)]


def _made_from(model: Model) -> list[str]:
    document = read_lineage(model.uri) or {}
    parents = [str(parent) for parent in document.get("parents") or [] if parent]
    checkpoint = document.get("checkpoint")
    return parents or [str(checkpoint or model.ref)]


def training_lines(states: Mapping[str, TrainingData]) -> list[str]:
    """Return by state what it learned from, and of what nothing is known."""
    lines = []
    for name, data in states.items():
        known = ", ".join(f"{version.rows:,} rows of {version.ref.short}" for version in data.latents)
        unknown = f"unknown training data: {', '.join(data.unknown)}" if data.unknown else ""
        lines.append(f"{name}  " + "; ".join(part for part in (known and f"learned from {known}", unknown) if part))
    return lines


def shared_warnings(
    judge: JudgeConfig, labels: str, labelled: LabelledImages, states: Mapping[str, TrainingData]
) -> list[str]:
    """Return what judge and control images share with the training data of states, as sentences for the table.

    Raises:
        AltDiffusionError: they share images, and the config refuses that.
    """
    images = labelled.of("judge", "control")
    known: dict[tuple[str, ...], Shared] = {}
    found: dict[str, Shared] = {}
    for name, data in states.items():
        key = tuple(str(version.ref) for version in data.latents)
        if key not in known:
            known[key] = find_shared(images, data, bits=judge.near_bits, at_most=judge.compared_at_most)
        found[name] = known[key]
    files_only = [name for name, one in found.items() if one.files_only and judge.near_bits is not None]
    warnings = [
        f"Of {name}, {one.without_hash:,} training images are not in this lake, so that images that look like them "
        "were not looked for."
        for name, one in found.items()
        if one.without_hash
    ]
    if files_only:
        warnings.append(
            f"Of {', '.join(files_only)}, images that look alike were not looked for, because there are more than "
            f"{judge.compared_at_most:,} training images (judge.compared_at_most); equal files were."
        )
    shared = summary(found)
    if not shared:
        return warnings
    if judge.shared == "refuse":
        raise AltDiffusionError(
            f"labels {labels}",
            f"give the judge or the control images that states have learned from ({shared}), so that a model that only "
            "repeats its training images would be named right",
            "label them generator, or leave them out; judge.near_bits: null compares files alone, and judge.shared: "
            "allow accepts them with a warning in the table",
        )
    return [*warnings, f"Judge or control images are among those that states have learned from: {shared}."]
