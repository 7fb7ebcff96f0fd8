"""What is measured on an image, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import (
    FOLDER_DIGEST,
    SHA256,
    Checked,
    Invalid,
    at_least,
    each,
    exactly_one,
    together,
)

SCORE_NAMES = ("aesthetic_v1", "aesthetic_v2", "nsfw", "watermark")
"""The scores that can be measured; each is a key of `ScoreConfig` and a column of the kind `scores`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig(Checked):
    """A linear layer or a small network on the L2-normalised CLIP image embedding, one number out."""

    uri: str = operational()
    """A safetensors file, or a torch file that loads with `weights_only=True`: any fsspec URI or local path."""
    sha256: Annotated[str, SHA256]
    """SHA-256 (hex) of that file."""
    hidden: Annotated[tuple[int, ...], each(at_least(1))] = ()
    """Widths between the embedding and the one number: empty is linear (LAION aesthetics V1); V2 is
    [1024, 128, 64, 16], LAION's NSFW detector [64, 512, 256]. Compared with the shapes in the file."""
    activation: Literal["none", "relu"] = "none"
    """After each hidden layer. LAION aesthetics V2 has none, its NSFW detector relu."""
    sigmoid: bool = False
    """Whether the number is squashed to a probability at the end."""
    standardise: bool = False
    """Whether the embedding is first brought to zero mean and unit variance by the file's `norm.mean` and
    `norm.variance`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(Checked):
    """A transformers image-classification folder with a preprocessor of its own."""

    folder: str = operational()
    """Folder, on this machine or any fsspec URI: config.json, preprocessor_config.json, *.safetensors."""
    digest: Annotated[str, FOLDER_DIGEST]
    """Its `folder_digest`: checked before loading."""
    label: str
    """Which label's probability is the score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig(Checked):
    """A scorer: one number per image, from a head or a classifier."""

    head: HeadConfig | None = None
    """Works on the embedding that CLIP makes anyway."""
    classifier: ClassifierConfig | None = None
    """A network of its own that reads the image."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from exactly_one(self, "head", "classifier", "give one of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(Checked):
    """What is measured: a scorer that is null is off. Without CLIP, download passes the source's own scores through."""

    clip: str | None = operational(None)
    """Folder, on this machine or any fsspec URI, of a transformers CLIP model (safetensors); LAION's heads want
    OpenAI's ViT-L/14."""
    clip_digest: Annotated[str | None, FOLDER_DIGEST] = None
    """Its `folder_digest`: checked before loading."""
    aesthetic_v1: ScorerConfig | None = None
    aesthetic_v2: ScorerConfig | None = None
    nsfw: ScorerConfig | None = None
    watermark: ScorerConfig | None = None
    batch: Annotated[int, at_least(1)] = 64
    """Images per forward pass; it is always full (padded), because kernels round differently at other batch sizes."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of CLIP and the classifiers; heads always work in float32."""
    device: str = operational("cpu")
    """Device of the scorers: cpu, cuda, cuda:1."""
    threads: Annotated[int, at_least(0)] = operational(4)
    """Decode images ahead of the model; 0 decodes in the model's own thread."""
    rows_per_unit: Annotated[int, at_least(1)] = 10_000
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from together(self, "clip", "clip_digest")
        if self.clip is None and self.heads:
            heads = ", ".join(self.heads)
            yield Invalid("clip", f"is missing, whose embedding {heads} need", "give clip and clip_digest")

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """The configured scorers by name, in the order of `SCORE_NAMES`."""
        every = {name: getattr(self, name) for name in SCORE_NAMES}
        return {name: scorer for name, scorer in every.items() if scorer is not None}

    @property
    def heads(self) -> dict[str, HeadConfig]:
        return {name: scorer.head for name, scorer in self.scorers.items() if scorer.head is not None}

    @property
    def classifiers(self) -> dict[str, ClassifierConfig]:
        scorers = self.scorers.items()
        return {name: scorer.classifier for name, scorer in scorers if scorer.classifier is not None}
