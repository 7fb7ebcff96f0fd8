"""How links are fetched, decoded and stored."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational


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
