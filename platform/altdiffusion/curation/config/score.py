"""What is measured of an image, and by which weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational

SCORE_NAMES = ("aesthetic_v1", "aesthetic_v2", "nsfw", "watermark")
"""What can be measured; each is a key of `ScoreConfig` and a column of the kind `scores`."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """A linear layer or a small network on the L2-normalised CLIP image embedding, one number out."""

    uri: str = operational()
    """A safetensors file, or a torch file that loads with `weights_only=True`: any fsspec URI or local path."""
    sha256: str
    """SHA-256 (hex) of that file."""
    hidden: tuple[int, ...] = ()
    """Widths between the embedding and the one number: empty is linear (LAION aesthetics V1); V2 is
    [1024, 128, 64, 16], LAION's NSFW detector [64, 512, 256]. Compared with the shapes in the file."""
    activation: Literal["none", "relu"] = "none"
    """After each hidden layer. LAION aesthetics V2 has none, its NSFW detector relu."""
    sigmoid: bool = False
    """Whether the number is squashed to a probability at the end."""
    standardise: bool = False
    """Whether the embedding is first brought to zero mean and unit variance by the file's `norm.mean` and
    `norm.variance`."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256: is not 64 hex digits; give the output of sha256sum")
        if any(width < 1 for width in self.hidden):
            raise ValueError("hidden: holds a width below 1; give the widths between embedding and score")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """A transformers image-classification folder with a preprocessor of its own."""

    folder: str = operational()
    """Local folder: config.json, preprocessor_config.json, *.safetensors."""
    digest: str
    """Its `folder_digest`: checked before loading."""
    label: str
    """Which label's probability is the score."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.digest):
            raise ValueError("digest: is not 64 hex digits; give the folder's digest")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig:
    """A scorer: one number an image, from one of two places."""

    head: HeadConfig | None = None
    """On the embedding that CLIP makes anyway."""
    classifier: ClassifierConfig | None = None
    """A network of its own that looks at the image."""

    def __post_init__(self) -> None:
        if (self.head is None) == (self.classifier is None):
            raise ValueError("head: a scorer has either a head or a classifier; give exactly one")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What is measured: whatever is null is not. With no CLIP, download passes the source's own scores through."""

    clip: str | None = operational(None)
    """Local folder of a transformers CLIP model (safetensors); LAION's heads want OpenAI's ViT-L/14."""
    clip_digest: str | None = None
    """Its `folder_digest`: checked before loading."""
    aesthetic_v1: ScorerConfig | None = None
    aesthetic_v2: ScorerConfig | None = None
    nsfw: ScorerConfig | None = None
    watermark: ScorerConfig | None = None
    batch: int = 64
    """Images in one forward pass; always full (padded), because kernels round differently at other batch sizes."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of CLIP and the classifiers; heads always work in float32."""
    device: str = operational("cpu")
    threads: int = operational(4)
    """Decode images ahead of the model; 0 decodes in the model's own thread."""
    rows_per_unit: int = 10_000

    def __post_init__(self) -> None:
        if (self.clip is None) != (self.clip_digest is None):
            raise ValueError("clip_digest: clip and its digest belong together; give both or neither")
        if self.clip is None and self.heads:
            raise ValueError(f"clip: {', '.join(self.heads)} need CLIP's embedding; give clip and clip_digest")
        for name in ("batch", "rows_per_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give e.g. 64")
        if self.threads < 0:
            raise ValueError("threads: must not be negative; give 0 to decode in the model's own thread")

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """What is configured, by name, in the order of `SCORE_NAMES`."""
        found = {name: getattr(self, name) for name in SCORE_NAMES}
        return {name: scorer for name, scorer in found.items() if scorer is not None}

    @property
    def heads(self) -> dict[str, HeadConfig]:
        return {name: scorer.head for name, scorer in self.scorers.items() if scorer.head is not None}

    @property
    def classifiers(self) -> dict[str, ClassifierConfig]:
        found = self.scorers.items()
        return {name: scorer.classifier for name, scorer in found if scorer.classifier is not None}
