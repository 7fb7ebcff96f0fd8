"""Settings of generation: the model, the prompts and the sampler, and operational ones for location and speed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from altdiffusion.config import added, operational
from altdiffusion.constraints import (
    Checked,
    Constraint,
    Invalid,
    at_least,
    between,
    each,
    exactly_one,
    from_below,
    matching,
    not_empty,
)
from altdiffusion.diffusion.hub import unpinned
from altdiffusion.generation.prompt_presets import FIELDS, PRESETS, PromptPreset
from altdiffusion.generation.speed import SpeedConfig
from altdiffusion.languages import normalised_tag
from altdiffusion.storage.documents import NAME

SamplerName = Literal["ddim", "dpmpp", "euler", "pndm", "unipc"]
Dtype = Literal["float32", "bfloat16", "float16"]
ShapeRule = Literal["proven", "any"]
ImageFormat = Literal["png", "jpg", "webp"]
ImageFiles = Literal["none", "by_hash", "by_name"]
RECORD_CHARS: dict[ImageFormat, int] = {"png": 16_384, "jpg": 4_096, "webp": 16_384}
"""Longest prompt or negative prompt that a file's record holds: a segment of JPEG has at most 64 KiB."""
_RUN = matching(NAME, "is not the name of a run", "give a plain name, or a path as folder")
_TAG = Constraint(
    lambda value: normalised_tag(value) == value,
    "is not a BCP 47 tag in its usual case",
    "write e.g. sv, zh-CN or pt-BR",
)
_DIGEST = matching(r"[0-9a-f]{8,64}", "is not 8 to 64 hex digits", "copy it from the lineage of the model")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Checked):
    """The generating model: exactly one of `folder` and `run`. Its content identifies it and is pinned by digest."""

    folder: str | None = operational(None)
    """URI of a model folder (diffusers layout) or of a single file (.safetensors, with base_configs), or a model of the
    hub at one commit (`hf://owner/name@<commit>`, also with `/<file>.safetensors` after it)."""
    base_configs: str | None = operational(None)
    """URI of a folder in diffusers' layout, or a model of the hub, with the configs, tokenizer and scheduler of a
    `folder` that is a single file. Its weights are not read."""
    run: Annotated[str | None, _RUN] = operational(None)
    """Name of a training run in the lake, whose newest export is used."""
    step: Annotated[int | None, at_least(0)] = operational(None)
    """Step of another export of that run to use."""
    digest: Annotated[str | None, _DIGEST] = None
    """Content digest (at least 8 hex digits) that the folder must have; any other folder is refused."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from exactly_one(self, "folder", "run", "name a model folder or a run")
        if self.folder is not None and not self.folder.strip():
            yield Invalid("folder", "is empty", "give the folder of an export or of a base model")
        for name in ("folder", "base_configs"):
            wrong = unpinned(getattr(self, name))
            if wrong is not None:
                yield Invalid(name, *wrong)
        if self.base_configs is not None and self.folder is None:
            yield Invalid(
                "base_configs", "is given without a folder", "name the single file in folder, or leave it out"
            )
        if self.step is not None and self.run is None:
            yield Invalid("step", "is a step of a run, and none is given", "give run, or leave step out")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsConfig(Checked):
    """The prompts file: which of its columns are read, what is filled in, and which rows are refused.

    Of the columns (FIELDS) only `prompt` is needed.
    """

    file: str = operational()
    """URI of the file, which is identified by its content: .jsonl, .json, .csv, .tsv, .txt (also .gz), .parquet."""
    preset: str | None = None
    """Which published list it is: a name of PRESETS; null reads the columns that have our names."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name (FIELDS) -> the file's column, where they differ."""
    ignore: tuple[str, ...] = ()
    """Our names of columns that are not read although the file has them."""
    separator: str | None = None
    """What separates the fields of a .csv; null finds out whether it is a comma, semicolon, tab or bar."""
    comments: str | None = None
    """Beginning of lines of a .txt that are not prompts, such as "#"; null takes every line."""
    language: Annotated[str | None, _TAG] = None
    """Language (BCP 47) of rows without one; null labels them `und`."""
    detect_language: bool = False
    """Whether curation's identifier finds the language of rows that have none."""
    languages: Annotated[tuple[str, ...], each(_TAG)] = ()
    """Languages that are drawn (`pt` includes `pt-BR`), all others being rejects; empty draws any."""
    default_seed: Annotated[int | None, from_below(-(2**63), 2**63)] = None
    """Seed of rows without one; null takes a hash of the prompt, and another one for each repetition."""
    default_size: Annotated[int, at_least(8)] = 512
    """Width and height, in pixels, of rows without them."""
    size_multiple: Annotated[int, at_least(1)] = 8
    """Number of pixels that widths and heights must be a multiple of; the model may need a larger one."""
    max_prompt_chars: Annotated[int, at_least(1)] = 4096
    """Longest prompt, in Unicode characters: the same number for every script."""
    max_side: Annotated[int, at_least(8)] = 2048
    """Largest width and height, in pixels. Raise it for long images."""
    strict: bool = operational(False)
    """Whether a row that would be a reject stops the job, before anything is drawn."""
    blocked_terms: str | None = operational(None)
    """URI of a file of terms that no prompt may contain, per language; it is identified by its content."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.preset is not None and self.preset not in PRESETS:
            close = difflib.get_close_matches(self.preset.lower(), PRESETS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield Invalid("preset", "is not a known list", f"{hint}use one of {', '.join(PRESETS)}")
        for name, column in self.columns.items():
            if name not in FIELDS or not column:
                yield Invalid("columns", f"cannot map {name!r}", f"use our names: {', '.join(FIELDS)}")
        for name in self.ignore:
            if name not in FIELDS or name == "prompt" or name in self.columns:
                yield Invalid("ignore", f"cannot contain {name!r}", "use our names of other columns than mapped ones")
        if self.columns and self.preset is not None and self.shape.layout != "rows":
            yield Invalid("columns", f"are those of preset {self.preset} already", "leave columns out")
        if self.separator is not None and len(self.separator) != 1:
            yield Invalid("separator", "is not one character", 'give e.g. ";"')
        if not 8 <= self.default_size <= self.max_side or self.default_size % self.size_multiple:
            yield Invalid(
                "default_size",
                f"must be a multiple of {self.size_multiple} between 8 and max_side ({self.max_side})",
                "use e.g. 512",
            )

    @property
    def shape(self) -> PromptPreset:
        """What the preset states."""
        return PromptPreset() if self.preset is None else PRESETS[self.preset]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig(Checked):
    """A low-rank adapter (LoRA) that is added to the model's weights. Its content identifies it."""

    folder: Annotated[str, not_empty("give a file or folder")] = operational()
    """URI of a .safetensors file, of a folder with one, or a repository of the hub (`hf://owner/name@<commit>`)."""
    scale: float = 1.0
    """How often it counts; 0 draws as without it."""
    digest: Annotated[str | None, _DIGEST] = None
    """SHA-256 of the file (at least 8 hex digits) that it must have; any other file is refused."""

    def conflicts(self) -> Iterator[Invalid]:
        wrong = unpinned(self.folder)
        if wrong is not None:
            yield Invalid("folder", *wrong)
        if not math.isfinite(self.scale):
            yield Invalid("scale", "is not a finite number", "give e.g. 1.0")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowsConfig(Checked):
    """Overlapping windows in which images larger than a window are drawn (MultiDiffusion); smaller ones are not
    affected."""

    side: Annotated[int, at_least(8)] = 512
    """Largest width and height of a window, in pixels: the size that the model was trained at."""
    overlap: Annotated[int, at_least(0)] = 256
    """Pixels that neighbouring windows share, at least. More of them make more passes and fainter seams."""
    circular: bool = False
    """Whether the left edge of an image wider than a window continues its right one, as in a panorama."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.overlap >= self.side:
            yield Invalid("overlap", f"is not less than side ({self.side})", f"give e.g. {self.side // 2}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingConfig(Checked):
    """How images are drawn, whatever the model and the prompts are; evaluation has the same settings.

    A row of the prompts may have its own negative prompt, steps, guidance scale and sampler; what is given here holds
    for the others. `batch_rows`, `threads` and `device` affect the result too, because sums in another order round
    differently. So every row is drawn in a batch of exactly that many rows, or of fewer where that is proven to change
    no bit, in every unit and pool.
    """

    sampler: SamplerName = "ddim"
    """`ddim`: DDIM with eta 0; `dpmpp`: DPM-Solver++ (2M), as good in about half the steps; `euler`: Euler's method;
    `pndm`: Stable Diffusion's own (PLMS), one call of the UNet more than `steps`; `unipc`: UniPC (bh2, order 2)."""
    steps: Annotated[int, between(1, 1000, "the noise schedule has 1000; give e.g. 50")] = 50
    """Steps of the sampler per image."""
    guidance_scale: Annotated[float, between(0, 100, "the published evaluation has 9")] = 9.0
    """Classifier-free guidance; at 1 or below the unconditional half is not computed."""
    negative_prompt: str = added("")
    """The text that guidance leads away from."""
    count: Annotated[int, at_least(1)] = added(1)
    """Number of images per prompt; their seeds are the prompt's, that plus 1, and so on."""
    dtype: Dtype = "float32"
    """Type of the networks; latents and the sampler are float32."""
    vae_fallback: bool = added(True)
    """Whether an image that is not finite in the VAE at `dtype` is decoded again in float32, before it is a reject."""
    batch_rows: Annotated[int, at_least(1)] = 32
    """Number of images that are drawn at once."""
    batch_shapes: ShapeRule = added("proven")
    """How many rows the last batch of a size has: `proven`, as few as are measured to give the same bits on the device;
    `any`, the next of 1, 2, 3, 4, 6, 8, 12 …, which may change a rare pixel by a grey level on a CPU, more on a GPU."""
    rows_per_unit: Annotated[int, at_least(1)] = operational(512)
    """Largest number of images in a unit of work. Units are smaller where the pool has more workers."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the models."""
    threads: Annotated[int, at_least(1)] = 1
    """CPU threads of one worker. More threads sum in another order, which changes a rare pixel; more workers do not."""
    image_format: ImageFormat = added("png")
    """Encoding of the images; `png` and lossless `webp` keep every pixel."""
    image_quality: Annotated[int, between(1, 100, "give e.g. 95; WebP at 100 is lossless")] = added(95)
    """Quality of `jpg` and `webp`; WebP at 100 is lossless."""
    image_files: bool | ImageFiles = operational("by_hash")
    """Also write every image as a file next to the dataset's shards: `by_hash`, while it is drawn, as
    images/<sha256>.<format>; `by_name`, at the end, as named/<digest of the version>/<id>-<seed>.<format>; `none`.
    true means `by_hash`, and false `none`."""
    file_record: bool = True
    """Whether every image carries its record (prompt, seed, model, sampler, row key) and the IPTC mark of generated
    media. It is part of the row keys, because it changes the files' bytes; pixels do not depend on it."""
    windows: WindowsConfig | None = added(None)
    """Windows in which large images are drawn; null draws every image in one pass."""
    vae_tiling: Annotated[int | None, at_least(32, "give e.g. 512, or null")] = added(None)
    """Side, in pixels, of the tiles in which larger images are decoded, which bounds the memory; null decodes any
    image as a whole."""
    prompt_windows: Annotated[int, between(1, 16)] = added(1)
    """Windows of the tokenizer's length (77) in which a long prompt is read at most; what is longer is cut off. Prompts
    of one window are read as with 1."""
    lora: tuple[AdapterConfig, ...] = added(())
    """Adapters that are added to the model's weights, one after the other."""
    speed: SpeedConfig = added(SpeedConfig())
    """How the networks are computed."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.dtype == "float16" and self.device == "cpu":
            yield Invalid("dtype", "float16 does not run on a CPU", "use float32 or bfloat16")
        if self.speed.deep_cache > self.steps:
            yield Invalid("speed.deep_cache", f"is more than steps ({self.steps})", f"use at most {self.steps}")
        yield from self.speed.conflicts_on(self.device)

    @property
    def file_naming(self) -> ImageFiles:
        """How image files are named, if any are written."""
        if isinstance(self.image_files, bool):
            return "by_hash" if self.image_files else "none"
        return self.image_files


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(DrawingConfig):
    """One set of generated images: a model, prompts, and how they are drawn."""

    model: ModelConfig
    prompts: PromptsConfig

    def conflicts(self) -> Iterator[Invalid]:
        longest = max(self.prompts.max_prompt_chars, len(self.negative_prompt))
        fits = RECORD_CHARS[self.image_format]
        if self.file_record and longest > fits:
            yield Invalid(
                "file_record",
                f"holds prompts of up to {fits:,} characters in a {self.image_format}, and {longest:,} are allowed",
                "lower prompts.max_prompt_chars, shorten negative_prompt, or set file_record: false",
            )
        yield from DrawingConfig.conflicts(self)  # a class with slots has no super() without arguments
