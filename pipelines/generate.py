"""Generation: a prompts file -> prompts -> generations, and a contact sheet of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from altdiffusion.config import added, operational
from altdiffusion.constraints import DATASET_NAME, Checked, Invalid, between, not_empty
from altdiffusion.diffusion.hub import at_hand
from altdiffusion.diffusion.models import ModelBundle, load_bundle
from altdiffusion.diffusion.stock_base import stock_base_at_hand, tried_base
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.adapters import merge
from altdiffusion.generation.generate_work import describe_work
from altdiffusion.generation.model import (
    Model,
    check_sampling,
    check_speed,
    ignored_parts,
    resolve_model,
    size_multiple,
)
from altdiffusion.generation.named_files import check_ids, write_named
from altdiffusion.generation.prompt_regions import regions_of
from altdiffusion.generation.prompt_windows import PromptWindows
from altdiffusion.generation.prompts import Prompts, read_prompts
from altdiffusion.generation.settings import AdapterConfig, GenerateConfig, ModelConfig, PromptsConfig
from altdiffusion.generation.sheet import check_sheet
from altdiffusion.generation.steps import generation_steps
from altdiffusion.generation.truncation import truncation_warning
from altdiffusion.generation.window_plan import check_windows, describe_windows
from altdiffusion.storage.dataset import Lake
from pipelines.check_images import ImageCheckConfig, ImageChecker
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at
from pipelines.detect_language import LanguageDetector
from pipelines.estimates import WorkEstimateConfig, work_line

SHOWN_LANGUAGES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetConfig(Checked):
    """A contact sheet of the images.

    Prompt ids of the form <concept>-<language> give one row per language and one column per concept; other ids give
    rows of images in the order of the prompts.
    """

    file: Annotated[str, not_empty("give the path of a PNG file")]
    """Local path of the PNG."""
    fonts: Annotated[str, not_empty("give a folder of fonts")]
    """Local folder of fonts that together cover the scripts of all prompts."""
    cell: Annotated[int, between(16, 1024)] = 96
    """Side of an image on the sheet; the PNG has 2 pixels per unit, fewer on a sheet of more than 64 megapixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateJobConfig(JobConfig):
    """`jobs/generate.py`."""

    name: str = operational("generate")
    """Name of the run in MLflow."""
    prompts: Annotated[str, DATASET_NAME] = "prompts"
    """Name of the dataset of prompts that the job makes from the file."""
    generations: Annotated[str, DATASET_NAME] = "generations"
    """Name of the dataset of images."""
    generate: GenerateConfig
    sheet: SheetConfig | None = operational(None)
    workers: Workers = operational(factory=Workers)
    image_check: ImageCheckConfig | None = added(None)
    """What refuses images after they are drawn; null refuses none."""
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.prompts == self.generations:
            yield Invalid("generations", "is also the name of the prompts", "give the two datasets different names")
        devices: dict[str, str] = {"generate.device": self.generate.device}
        if self.image_check is not None:
            devices["image_check.score.device"] = self.image_check.score.device
        yield from device_conflicts(self, self.workers, devices)

    @property
    def run_name(self) -> str:
        return self.name


def pipeline_steps(config: GenerateJobConfig) -> tuple[PipelineStep, ...]:
    """Return both pipeline steps: prompts file -> prompts, prompts -> generations."""
    return generation_pipeline_steps(
        config.lake, config.prompts, config.generations, config.generate, config.workers, image_checker(config)
    )


def image_checker(config: GenerateJobConfig) -> ImageChecker | None:
    """Return what checks the images of a job, if anything does."""
    return None if config.image_check is None else ImageChecker(config=config.image_check)


def generation_pipeline_steps(
    lake_uri: str,
    prompts: str,
    generations: str,
    generate: GenerateConfig,
    workers: Workers,
    checker: ImageChecker | None = None,
) -> tuple[PipelineStep, ...]:
    """Return the same two steps for any job that has a set of images drawn.

    Args:
        prompts: name of the dataset of prompts.
        generations: name of the dataset of images.
        checker: refuses images after they are drawn.
    """
    return generation_steps(
        lake_uri,
        prompts,
        generations,
        generate,
        LanguageDetector(wanted=generate.prompts.detect_language),
        checker,
        pool=workers.pool,
        resources=workers.resources,
    )


def read(settings: PromptsConfig) -> Prompts:
    """Return the rows of a prompts file as the job will read them."""
    detector = LanguageDetector(wanted=settings.detect_language)
    return read_prompts(settings, detector() if settings.detect_language else None)


def describe(prompts: Prompts) -> list[str]:
    """Return lines on the rows of a prompts file: how many, in which languages, and the rejects by reason."""
    languages = sorted(prompts.by_language.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{tag} {rows:,}" for tag, rows in languages[:SHOWN_LANGUAGES]]
    if len(languages) > SHOWN_LANGUAGES:
        named.append(f"{len(languages) - SHOWN_LANGUAGES} others")
    lines = [f"prompts  {prompts.accepted.num_rows:,} of {prompts.rows:,} rows", f"languages  {', '.join(named)}"]
    first: dict[str, str] = {}
    for reject in prompts.rejects.select(["reason", "detail"]).to_batches():
        for reason, detail in zip(reject["reason"].to_pylist(), reject["detail"].to_pylist(), strict=True):
            first.setdefault(reason, detail)
    return [*lines, *(f"reject {reason}  {rows:,}, e.g. {first[reason]}" for reason, rows in prompts.by_reason.items())]


def suits(prompts: Prompts, model: Model, bundle: ModelBundle, file: str, windows: int = 1) -> list[str]:
    """Return lines on prompts that take several windows of a model's text encoder, and on those that are too long.

    Args:
        windows: windows in which a prompt is read at most.

    Raises:
        AltDiffusionError: the model cannot draw a size that a prompt asks for.
    """
    multiple = size_multiple(model)
    sizes = prompts.accepted.select(["id", "width", "height"])
    sides = np.stack([sizes[side].to_numpy() for side in ("width", "height")])
    wrong = np.flatnonzero((sides % multiple).any(axis=0))
    if len(wrong):
        row = sizes.slice(int(wrong[0]), 1).to_pylist()[0]
        raise AltDiffusionError(
            f"prompts file {file}",
            f"asks for {row['width']} x {row['height']} pixels in prompt {row['id']} and {len(wrong) - 1:,} others; "
            f"the model draws multiples of {multiple}",
            f"change the sizes, or make such rows rejects by prompts.size_multiple: {multiple}",
        )
    tokenizer = bundle.tokenizer
    positions = int(tokenizer.model_max_length)
    # A token is at least one byte of the text as tokenizers normalise it, but for one at its beginning.
    texts = _texts(prompts.accepted)
    most_tokens = pc.add(pc.binary_length(pc.utf8_normalize(texts["prompt"], "NFKC")), 1)
    long = texts.filter(pc.greater(most_tokens, positions - tokenizer.num_special_tokens_to_add()))
    reader = PromptWindows(tokenizer, bundle.text_encoder, windows)
    reading = reader.read(long["prompt"].to_pylist())
    warning = truncation_warning(long["id"].to_pylist(), reading, reader.positions(windows))
    lines = []
    if windows > 1:
        taken = [number for number in reader.of(long["prompt"].to_pylist()) if number > 1]
        how = f"one sequence of the encoder's {reader.encoder_positions}" if reader.one_sequence else "separate windows"
        most = reader.positions(max(taken, default=1))
        lines.append(
            f"prompt windows  {len(taken):,} prompts take 2 or more windows of {positions} tokens: up to {most} "
            f"positions, in {how}"
        )
    return [*lines, *([f"warning  {warning}"] if warning is not None else [])]


def _texts(prompts: pa.Table) -> pa.Table:
    """Return the ids and texts of prompts and their regions, each as a row."""
    texts = prompts.select(["id", "prompt"])
    rows = prompts.select(["id", "regions"]).filter(pc.is_valid(prompts["regions"])).to_pylist()
    regions = [
        {"id": f"{row['id']}, region {number}", "prompt": region.prompt}
        for row in rows
        for number, region in enumerate(regions_of(row["regions"]), 1)
    ]
    return pa.concat_tables([texts, pa.Table.from_pylist(regions, schema=texts.schema)])


def opened(
    config: ModelConfig, lake_uri: str, dtype: str, lora: Sequence[AdapterConfig] = ()
) -> tuple[Model, ModelBundle]:
    """Return a model after opening each of its parts in a dtype, so that drawing will not fail there."""
    model = resolve_model(config, lake_uri, lora)
    bundle = load_bundle(model.uri, dtype=getattr(torch, dtype))
    merge(bundle, model.adapters)
    return model, bundle


def sheet_lines(prompts: PromptsConfig, fonts: str, file: str | None = None) -> list[str]:
    """Return what a contact sheet of these prompts will leave out, after a check that it can be drawn.

    Raises:
        AltDiffusionError: a package or a font is missing, or the file cannot be written.
    """
    table = read(prompts).accepted
    rows = zip(*(table[name].to_pylist() for name in ("id", "language", "prompt")), strict=True)
    return [f"sheet  {note}" for note in check_sheet(fonts, rows, file=file)]


def check(config: GenerateJobConfig) -> list[str]:
    """Return the notes on the contact sheet, if there is one, before any image is drawn; it raises as `sheet_lines`.

    Raises:
        AltDiffusionError: ids of the prompts cannot be the names of files next to each other, or a model of the image
            checker cannot be loaded.
    """
    if config.generate.file_naming == "by_name":
        check_ids(read(config.generate.prompts).accepted["id"])
    checker = image_checker(config)
    if checker is not None:
        checker.try_out()
    sheet = config.sheet
    return [] if sheet is None else sheet_lines(config.generate.prompts, sheet.fonts, sheet.file)


def write_files(config: GenerateJobConfig, lake: Lake) -> None:
    """Write the image files with readable names of the job's newest version, where the config asks for them."""
    if config.generate.file_naming == "by_name":
        folder, written = write_named(lake.version(config.generations))
        if written:
            print(f"[generate] {written:,} image files in {folder}", flush=True)


def model_lines(generate: GenerateConfig, lake_uri: str, prompts: Prompts | None) -> list[str]:
    """Return which model will draw and what it names that is not used, after every check of the model.

    A model that would have to be fetched from the hub is only named.

    Args:
        prompts: rows to check against the model; None where they cannot be read.

    Raises:
        AltDiffusionError: the job would stop at it.
    """
    folder, configs = generate.model.folder, generate.model.base_configs
    if folder is not None and not stock_base_at_hand(folder, lake_uri, configs):
        return _trial(generate, folder, lake_uri)
    remote = [one.folder for one in generate.lora if not at_hand(one.folder, lake_uri, "lora")]
    if remote:
        shown = generate.model.folder or f"the export of run {generate.model.run}"
        return [f"draws with  {shown} and {', '.join(remote)} (fetched and checked when the job starts)"]
    model, bundle = opened(generate.model, lake_uri, generate.dtype, generate.lora)
    check_sampling(model, generate.sampler, generate.steps)
    check_windows(generate, model)
    check_speed(model, generate)
    ignored = ignored_parts(model)
    return [
        f"draws with  {model.ref.short}",
        *(
            f"adapter  {one.ref.short}, scale {one.scale:g}: {one.layers:,} layers, rank {one.rank:,}, "
            f"SHA-256 {one.content[:12]}"
            for one in model.adapters
        ),
        *([f"not used  {', '.join(ignored)}, named in the model's model_index.json"] if ignored else []),
        *(describe_windows(prompts.accepted, generate, model) if prompts is not None else []),
        *(suits(prompts, model, bundle, generate.prompts.file, generate.prompt_windows) if prompts is not None else []),
    ]


def _trial(generate: GenerateConfig, folder: str, lake_uri: str) -> list[str]:
    """Return the line of a model that is not in the lake yet, after a trial of its conversion where it is here."""
    with tried_base(folder, lake_uri, generate.model.base_configs) as trial:
        if trial is None:
            return [f"draws with  {folder} (it is fetched and checked when the job starts)"]
        model, _ = opened(ModelConfig(folder=trial), lake_uri, generate.dtype)
        check_sampling(model, generate.sampler, generate.steps)
        check_windows(generate, model)
        check_speed(model, generate)
        return [f"draws with  {folder} (it is converted into the lake when the job starts)"]


def survey(config: GenerateJobConfig, remote: bool = False) -> Survey:
    """Return how many images are asked for and of which model, and whether prompts, model or fonts are missing."""
    settings = config.generate.prompts
    found: list[Prompts] = []

    def prompts_there(_: Lake) -> list[str]:
        found.append(read(settings))
        accepted = found[0].accepted
        return [*describe(found[0]), describe_work(accepted, config.generate, config.workers.max)]

    def model_there(lake: Lake) -> list[str]:
        return model_lines(config.generate, lake.uri, found[0] if found else None)

    more = work_line(config.estimate, config.workers.max)
    return look_at(config.lake, remote, prompts_there, lambda _: check(config), model_there, more=more)


def plan(config: GenerateJobConfig) -> Plan:
    """Return what the job will do."""
    generate = config.generate
    model = generate.model.folder or f"newest export of run {generate.model.run}"
    return Plan(
        title=f"generate from {generate.prompts.file}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts={
            "model": model,
            "sampler": f"{generate.sampler}, {generate.steps} steps, guidance {generate.guidance_scale:g}",
            "batches": f"up to {generate.batch_rows:,} images of one size; units: up to {generate.rows_per_unit:,}",
            "sheet": config.sheet.file if config.sheet else "none",
        },
    )
