"""The model card of an export: what it is, what it was made from, under which licence, and how well it does.

Everything in it is read from the lake: records of the runs, manifests of the datasets, reports of evaluations. It
holds no time, host or path, so the same lake gives the same card. Its head is the YAML that the Hugging Face hub
reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from altdiffusion.diffusion.folder import read_lineage
from altdiffusion.diffusion.hub import HubId, is_hub_id
from altdiffusion.diffusion.licence import licence_of
from altdiffusion.errors import AltDiffusionError
from altdiffusion.html.markdown import table
from altdiffusion.languages import in_order, named_language
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.checkpoints.format import run_and_step
from altdiffusion.training.exports.card_use import adapters_use, is_of_adapters, single_file_use
from altdiffusion.training.exports.scores import Evaluated, evaluated, model_index, paragraphs
from altdiffusion.training.model.lora import STOCK_FILE
from altdiffusion.training.run.record import read_record

UNKNOWN = "unknown"
"""The hub's value for a licence that is not known."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One run of the chain that led to the model."""

    run: str
    step: int
    record: Mapping[str, Any]

    @property
    def first(self) -> int:
        """Return the step that it went on from: 0 unless it continued another run."""
        continued = self.record.get("continued")
        return run_and_step(Ref.parse(continued))[1] if continued else 0


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """A model that the first run started from."""

    role: str
    ref: Ref
    hub: str | None
    licence: str | None


def model_card(lake: str, lineage: Mapping[str, Any]) -> str:
    """Return README.md of an export.

    Args:
        lineage: the export's lineage.json.
    """
    stages = _stages(lake, str(lineage["checkpoint"]))
    origins = list(_origins(stages[0].record)) if stages else []
    versions = {ref: _version(lake, ref) for stage in stages for ref in stage.record["datasets"]}
    languages = _languages(versions.values())
    scores = list(evaluated(lake, str(lineage["content"])))
    parts = [
        _front(lineage, origins, languages, model_index(str(lineage["run"]), scores)),
        _title(lineage, stages),
        _use(lineage, stages[-1].record if stages else {}),
        _made_from(origins, stages),
        _data(stages, versions),
        _scores(scores),
        _licences(origins),
        _settings(stages),
        _identity(lineage),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _stages(lake: str, checkpoint: str) -> list[_Stage]:
    """Return the runs up to a checkpoint, the first one first."""
    found: list[_Stage] = []
    ref: str | None = checkpoint
    while ref is not None:
        run, step = run_and_step(Ref.parse(ref))
        record = read_record(lake, run)
        if record is None or any(stage.run == run for stage in found):
            break
        found.insert(0, _Stage(run=run, step=step, record=record))
        ref = record.get("continued") or record["start"]
    return found


def _origins(record: Mapping[str, Any]) -> Iterator[_Origin]:
    folders = [
        ("base model", record["base"]),
        ("text encoder", record["text_encoder"]),
        ("teacher", record.get("teacher")),
    ]
    present = [(role, folder) for role, folder in folders if folder is not None]
    for (role, folder), text in zip(present, record["models"], strict=False):
        document = read_lineage(folder) or {}
        yield _Origin(role=role, ref=Ref.parse(text), hub=document.get("hub"), licence=licence_of(folder))


def _version(lake: str, ref: str) -> Version | None:
    try:
        return Lake(lake).version(ref.removeprefix("dataset:"))
    except AltDiffusionError:
        return None


def _languages(versions: Any) -> list[str]:
    """Return the codes of the languages with training rows, the platform's own order first."""
    codes = {
        code for version in versions if version for code, rows in version.manifest.rows_by_language.items() if rows
    }
    return in_order(sorted(codes))


def _front(
    lineage: Mapping[str, Any],
    origins: Sequence[_Origin],
    languages: Sequence[str],
    index: Sequence[Mapping[str, Any]],
) -> str:
    bases = [HubId.parse(origin.hub).repo for origin in origins if origin.hub and is_hub_id(origin.hub)]
    licences = [origin.licence for origin in origins if origin.licence]
    head: dict[str, Any] = {
        "license": licences[0] if licences else UNKNOWN,
        "language": [code for code in languages if len(code) == 2],  # the hub takes ISO 639-1 codes only
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "text-to-image", "multilingual"],
    }
    if bases:
        head["base_model"] = bases
    if is_of_adapters(lineage):
        head["tags"] += ["diffusers", "lora"]
        if bases:
            head["base_model"], head["base_model_relation"] = bases[:1], "adapter"
    if index:
        head["model-index"] = list(index)
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _title(lineage: Mapping[str, Any], stages: Sequence[_Stage]) -> str:
    kind = "averaged (EMA)" if lineage["weights"] == "ema" else "not averaged (non-EMA)"
    if "dtype" in lineage:
        kind += f", in {lineage['dtype']}"
    what = "Adapters (LoRA) for a" if is_of_adapters(lineage) else "A"
    chain = " -> ".join(str(stage.record["stage"]) for stage in stages) or str(lineage["stage"])
    return (
        f"# {lineage['run']}, step {int(lineage['step']):,}\n\n"
        f"{what} multilingual text-to-image model in Stable Diffusion's layout; stages: {chain}. Weights: {kind}."
    )


def _use(lineage: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    objective = record.get("meaning", {}).get("objective") or {}
    note = ""
    if objective.get("prediction", "epsilon") != "epsilon":
        note = f"\n\nThe UNet predicts `{objective['prediction']}`, as the scheduler's config states."
        if objective.get("zero_terminal_snr"):
            note += " Its schedule ends without signal (`rescale_betas_zero_snr`): keep `timestep_spacing: trailing`."
    if is_of_adapters(lineage):
        return adapters_use(lineage, _start_of(record))
    if lineage.get("format") == "single-file":
        return single_file_use(lineage) + note
    if record.get("meaning", {}).get("lora"):
        note += _adapter_note(record)
    return (
        "## Use\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("this/folder")\nimage = pipeline("a prompt").images[0]\n```'
        + note
    )


def _adapter_note(record: Mapping[str, Any]) -> str:
    """Return what the adapter's file belongs to, and what it must not be loaded on."""
    return (
        f"\n\n**The adapters are already part of this UNet: do not load `{STOCK_FILE}` on this folder, which would "
        "count them twice.** The file holds them alone, for what the run started from, "
        f"{_start_of(record)}; together they draw "
        "what this folder draws:\n\n```python\n"
        'pipeline = DiffusionPipeline.from_pretrained("what/the/run/started/from")\n'
        'pipeline.load_lora_weights("this/folder")\n```'
    )


def _start_of(record: Mapping[str, Any]) -> str:
    """Return in words what the run started from."""
    if record["start"]:
        return f"an export of {Ref.parse(record['start']).short} ({record['meaning']['start']['weights']} weights)"
    names = [Ref.parse(text).name for text in record["models"]]
    return f"{names[0]}, unchanged" + (f", behind the text encoder of {names[1]}" if record["text_encoder"] else "")


def _made_from(origins: Sequence[_Origin], stages: Sequence[_Stage]) -> str:
    lines = ["## Made from", ""]
    for origin in origins:
        place = f", from {origin.hub}" if origin.hub else ""
        lines.append(f"- {origin.role}: {origin.ref.name}, digest `{origin.ref.digest}`{place}")
    rows = [["stage", "run", "updates", "samples seen", "trained", "started from"]]
    for stage in stages:
        meaning, updates = stage.record["meaning"], stage.step - stage.first
        origin = stage.record.get("continued") or stage.record["start"]
        rows.append(
            [
                str(stage.record["stage"]),
                stage.run,
                f"{updates:,}",
                f"{updates * int(meaning['global_batch']):,}",
                str(meaning["trainable"]) + (", adapters" if meaning.get("lora") else ""),
                ("continued from " if stage.first else "") + Ref.parse(origin).short if origin else "the models above",
            ]
        )
    return "\n".join([*lines, "", table(rows)])


def _data(stages: Sequence[_Stage], versions: Mapping[str, Version | None]) -> str:
    lines = ["## Training data", ""]
    for ref, version in versions.items():
        used = ", ".join(stage.run for stage in stages if ref in stage.record["datasets"])
        size = f"{version.rows:,} rows" if version else "no longer in the lake"
        parsed = Ref.parse(ref)
        lines.append(f"- {parsed.name}: {size}; digest `{parsed.digest}`; used by {used}")
    here = [version for version in versions.values() if version]
    languages = _languages(here)
    if languages:
        rows = [["language", *(version.ref.name for version in here)]]
        for code in languages:
            rows.append(
                [named_language(code), *(f"{version.manifest.rows_by_language.get(code, 0):,}" for version in here)]
            )
        lines += ["", "Rows by language:", "", table(rows)]
    return "\n".join(lines)


def _scores(found: Sequence[Evaluated]) -> str:
    parts = [part for one in found for part in paragraphs(one)]
    shown = [part if isinstance(part, str) else table(part) for part in parts]
    return "\n\n".join(["## Evaluation", *(shown or ["No evaluation of this model was run."])])


def _licences(origins: Sequence[_Origin]) -> str:
    lines = ["## Licence", ""]
    for origin in origins:
        lines.append(f"- {origin.role} {origin.ref.name}: {origin.licence or 'not recorded'}")
    lines.append("- datasets: their manifests record no licence; images and captions stay under their owners' terms")
    return "\n".join([*lines, "", "What the base model's licence asks for, this model has to keep as well."])


def _settings(stages: Sequence[_Stage]) -> str:
    lines = ["## Training settings"]
    for stage in stages:
        meaning = {key: value for key, value in stage.record["meaning"].items() if key not in ("run", "datasets")}
        text = yaml.safe_dump(meaning, sort_keys=True, allow_unicode=True, default_flow_style=None, width=110)
        lines.append(f"Run {stage.run}, fingerprint `{stage.record['fingerprint']}`:\n\n```yaml\n{text}```")
    return "\n\n".join(lines)


def _identity(lineage: Mapping[str, Any]) -> str:
    return f"## Identity\n\n- checkpoint: `{lineage['checkpoint']}`\n- content of this folder: `{lineage['content']}`"
