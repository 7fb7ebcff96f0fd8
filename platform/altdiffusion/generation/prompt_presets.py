"""Published lists of prompts by name: which of their columns are ours, and how one of their rows becomes prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FIELDS = (
    "id", "language", "prompt", "seed", "width", "height", "negative_prompt", "steps", "guidance_scale", "sampler",
    "count", "regions",
)  # fmt: skip
"""What a prompts file may hold, by our names; of these only `prompt` is needed."""
OWN_COLUMNS = {name: name for name in FIELDS}
_WEBUI_SAMPLERS = {"ddim": "ddim", "dpm++ 2m": "dpmpp", "euler": "euler", "plms": "pndm", "unipc": "unipc"}
_DIFFUSIONDB_SAMPLERS = {"1": "ddim", "2": "pndm", "3": "euler", "ddim": "ddim", "plms": "pndm", "k_euler": "euler"}
_DIFFUSIONDB = {
    "id": "image_name", "prompt": "prompt", "seed": "seed", "steps": "step", "guidance_scale": "cfg",
    "sampler": "sampler", "width": "width", "height": "height",
}  # fmt: skip
Layout = Literal["rows", "captions", "pairs", "webui"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPreset:
    """What is known about a list of prompts before it is opened."""

    columns: Mapping[str, str] = field(default_factory=lambda: OWN_COLUMNS)
    """Our name (FIELDS) -> the list's column; a column that is not named here is not read."""
    language: str | None = None
    """Label of rows without one."""
    layout: Layout = "rows"
    """`rows`: one prompt per row. `captions`: one image per row, with lists of captions by language. `pairs`: an
    English caption and its translation per row. `webui`: the text of AUTOMATIC1111's web interface."""
    samplers: Mapping[str, str] | None = None
    """The list's name of a sampler, lower case -> ours; the job's own sampler draws rows with any other one."""
    random_seed: int | None = None
    """A seed that means that the row has none."""
    file_ids: bool = False
    """Whether ids are names of files, whose ending is left out."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The endings of the files that the preset reads."""
        if self.layout == "rows":
            return ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt")
        return ("txt",) if self.layout == "webui" else ("jsonl", "ndjson", "json")


_PROMPT = {"prompt": "prompt"}
PRESETS: dict[str, PromptPreset] = {
    # GenEval: evaluation_metadata.jsonl (tag, include, prompt) and generation_prompts.txt.
    "geneval": PromptPreset(columns=_PROMPT, language="en"),
    # google-research/parti, PartiPrompts.tsv: Prompt, Category, Challenge, Note.
    "partiprompts": PromptPreset(columns={"prompt": "Prompt"}, language="en"),
    # DrawBench's table as CSV: Prompts, Category.
    "drawbench": PromptPreset(columns={"prompt": "Prompts"}, language="en"),
    # HPSv2, benchmark/{anime,concept-art,paintings,photo}.json: an array of texts.
    "hpsv2": PromptPreset(columns=_PROMPT, language="en"),
    # Crossmodal-3600, captions.jsonl: image/key, image/locale, and by language {"caption": [...], ...}.
    "xm3600": PromptPreset(layout="captions"),
    # DiffusionDB, metadata.parquet; its samplers are numbers there, names in the parts' JSON.
    "diffusiondb": PromptPreset(
        columns={
            "id": "image_name",
            "prompt": "prompt",
            "seed": "seed",
            "steps": "step",
            "guidance_scale": "cfg",
            "sampler": "sampler",
            "width": "width",
            "height": "height",
        },
        samplers=_DIFFUSIONDB_SAMPLERS,
        file_ids=True,
    ),
    # superhero-7/AltDiffusion, misc/evaluation*: an array of {source_caption, target_caption, image}.
    "altdiffusion": PromptPreset(layout="pairs", file_ids=True),
    # MLPerf inference, coco2014/captions/captions_source.tsv. Its width and height are those of COCO's photographs.
    "mlperf": PromptPreset(columns={"id": "id", "prompt": "caption"}, language="en"),
    # AUTOMATIC1111's web interface: what it writes of images, and what "Prompts from file or textbox" reads.
    "a1111": PromptPreset(layout="webui", samplers=_WEBUI_SAMPLERS, random_seed=-1),
}
"""By name, lower case."""
