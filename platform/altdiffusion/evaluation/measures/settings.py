"""Settings of the measures: which ones, with which networks, against which images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import FOLDER_DIGEST, SHA256, Checked, Invalid, at_least, each, not_empty, one_of, unique
from altdiffusion.evaluation.measures.resize import Resize
from altdiffusion.languages import BY_CODE

NETWORK_MEASURES = ("fid", "kid", "is")
JUDGE_MEASURES = ("cmmd", "clip_sim_english", "clip_sim_native", "retrieval")
REFERENCE_MEASURES = ("fid", "kid", "cmmd")
"""The measures that compare with real images."""
MEASURES = (*NETWORK_MEASURES, *JUDGE_MEASURES)
Dtype = Literal["float32", "bfloat16", "float16"]
Languages = Annotated[tuple[str, ...], not_empty("name them"), unique("language"), each(one_of(tuple(BY_CODE)))]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig(Checked):
    """The feature network of FID, KID and IS: a TorchScript file, which is code and therefore runs only if pinned."""

    file: str = operational()
    """URI of the file, e.g. the published inception-2015-12-05.pt."""
    sha256: Annotated[str, SHA256]
    """SHA-256 (hex) of that file."""
    resize: Resize
    """How images are resized to `side`; FIDs of different resizing are not comparable."""
    side: Annotated[int, at_least(1)] = 299
    """Side of the square that the network reads, in pixels."""
    width: Annotated[int, at_least(1)] = 2048
    """Number of features that it gives."""
    form: Literal["stylegan", "plain"] = "stylegan"
    """How it is called: `stylegan` as the published file (return_features=True for features, no_output_bias=True for
    class probabilities); `plain` with images alone, for features only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig(Checked):
    """The judge of images and texts: a CLIP model of transformers that the generator has not seen."""

    folder: str = operational()
    """Folder, on this machine or any fsspec URI, of a CLIPModel or AltCLIPModel with its tokenizer (safetensors)."""
    digest: Annotated[str, FOLDER_DIGEST]
    """Its `folder_digest`: checked before loading."""
    languages: Annotated[tuple[str, ...], not_empty("name them"), unique("language"), each(one_of(tuple(BY_CODE)))] = (
        operational()
    )
    """Languages that its text encoder reads: [en] for OpenAI's CLIP, the eighteen for AltCLIP-m18."""
    text_tokens: Annotated[int, at_least(3)] = 77
    """Tokens of a text; longer texts are cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuresConfig(Checked):
    """What is measured on the images of every state, per language and in the mean."""

    measures: Annotated[tuple[str, ...], not_empty("name a measure"), unique("measure"), each(one_of(MEASURES))]
    """Any of `fid`, `kid`, `is`, `cmmd`, `clip_sim_english`, `clip_sim_native`, `retrieval`."""
    network: NetworkConfig | None = None
    """Needed for fid, kid and is."""
    judge: JudgeConfig | None = None
    """Needed for cmmd, clip_sim_english, clip_sim_native and retrieval."""
    reference: str | None = None
    """Dataset of real images for fid, kid and cmmd: `name`, or `name@digest` to pin a version. Each distinct image is
    counted once."""
    reference_by_language: bool = False
    """Whether the images of a language are compared with the real ones of that language only, not with all."""
    kid_block: Annotated[int, at_least(2)] = 1000
    """Images per block of KID."""
    splits: Annotated[int, at_least(1)] = 10
    """Splits of the Inception Score."""
    sample: Annotated[int, at_least(2)] = 10_000
    """Most images per language that KID, CMMD and retrieval compare: a keyed draw; fid, is and clip_sim use all."""
    recall_at: Annotated[tuple[int, ...], not_empty("give e.g. [1, 5, 10]"), unique("rank"), each(at_least(1))] = (
        1,
        5,
        10,
    )
    """Ranks k of retrieval R@k."""
    seed: int = 0
    """Key of the draws of samples, blocks and bootstraps."""
    batch: Annotated[int, at_least(1)] = 64
    """Images per forward pass; it is always full (padded), because kernels round differently at other batch sizes."""
    dtype: Dtype = "float32"
    """Data type of the judge; the feature network always works in float32."""
    device: Literal["cpu", "cuda"] = operational("cpu")
    """Device of the feature networks: cpu, cuda, cuda:1."""
    threads: Annotated[int, at_least(1)] = operational(4)
    """Threads that decode and resize images."""
    rows_per_unit: Annotated[int, at_least(1)] = 2048
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""

    def conflicts(self) -> Iterator[Invalid]:
        for name, names, given in (
            ("network", NETWORK_MEASURES, self.network),
            ("judge", JUDGE_MEASURES, self.judge),
            ("reference", REFERENCE_MEASURES, self.reference),
        ):
            wanted = [measure for measure in self.measures if measure in names]
            if wanted and given is None:
                yield Invalid(name, f"is missing, which {', '.join(wanted)} need", f"give {name}, or leave them out")
            if not wanted and given is not None:
                yield Invalid(name, "is given, but no measure needs it", f"add one of {', '.join(names)}")
        if "is" in self.measures and self.network is not None and self.network.form == "plain":
            yield Invalid("measures", "holds is, but a plain network gives no class probabilities", "leave is out")
        if self.dtype == "float16" and self.device == "cpu":
            yield Invalid("dtype", "float16 does not run on a CPU", "use float32 or bfloat16")
        if "clip_sim_english" in self.measures and self.judge is not None and "en" not in self.judge.languages:
            yield Invalid("judge.languages", "lacks en, which clip_sim_english reads", "leave clip_sim_english out")
