"""How an image that came, by whatever door, is checked, decoded and stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Constraint, Invalid, at_least, between, not_empty, positive, unique

Format = Literal["jpg", "png", "webp", "gif", "avif", "bmp", "tiff"]
FORMATS: tuple[Format, ...] = get_args(Format)
_DECODERS = Constraint(lambda value: value == "auto" or value >= 1, "must be at least 1", "give 1 or more, or auto")
_SOME_FORMAT = f"name at least one of {', '.join(FORMATS)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig(Checked):
    """Which images are stored, and in which form. Caps decide which rows stay: they are part of the fingerprint."""

    image_size: Annotated[int, at_least(1)] = 512
    """Pixels of the shorter side (`keep_ratio`, `center_crop`) or longer side (`border`) as stored."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    """How an image comes to `image_size`, by the names that img2dataset has."""
    resize_only_if_bigger: bool = True
    """Leaves smaller images as they are, in place of enlarging them."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format that images are stored in."""
    encode_quality: int = 95
    """1 to 100 for jpg and webp; compression 0 to 9 for png."""
    scaled_decode: bool = True
    """Whether a JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves more than `image_size`: half the time, and nearly
    the same image as the full decode's."""
    scaled_decode_margin: Annotated[float, at_least(1)] = 1.0
    """A scaled decode has more than this many times `image_size`. 1.25 gives the pixels that earlier
    versions stored."""
    formats: Annotated[tuple[Format, ...], not_empty(_SOME_FORMAT), unique("format")] = ("jpg", "png", "webp", "gif")
    """Formats that are decoded, recognised by a file's bytes; `avif`, `bmp` and `tiff` can be added. Animations give
    their first frame. Any other format is rejected as `format`."""
    color_space: Literal["srgb", "as_coded"] = "srgb"
    """srgb: colours that a file states (an ICC profile, PNG's cICP, gAMA and cHRM, AVIF's nclx) are converted to sRGB
    before anything else. as_coded: its numbers are taken for sRGB's, whatever it states."""
    shard_mib: Annotated[int, between(1, 1024, "a shard's images must fit into 2 GiB; give e.g. 128")] = 128
    """MiB of stored images in one shard at most; a worker holds about three times that while it writes one."""
    min_side: Annotated[int, at_least(1)] = 1
    """Pixels; an image with a shorter side below this is rejected from its header."""
    max_side: Annotated[int, at_least(1)] = 16384
    """Pixels of the longest side that is decoded."""
    max_pixels: Annotated[int, at_least(1)] = 1 << 26
    """Width x height at most, read from the header before anything is decoded."""
    max_aspect: float = 20.0
    """Longer side to shorter side of the longest image that is kept."""
    max_bytes: Annotated[int, at_least(1)] = 32 << 20
    """Body bytes at most, declared or streamed."""
    decode_timeout_s: Annotated[float, positive("give seconds")] = 20.0
    """Seconds the decoder may take for one image; then its process is ended and the row rejected."""
    decoder_memory_mib: Annotated[int, at_least(1)] = 1536
    """MiB the decoder may take for one image; the default suffices for any image of `max_pixels`."""
    decoders: Annotated[Literal["auto"] | int, _DECODERS] = operational("auto")
    """Processes of one worker that decode, resize and encode; `auto` is one per core of the worker, less one for the
    network, and at least one."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from self.store_conflicts()

    def decoder_count(self, cores: float) -> int:
        """Return how many decoders a worker of so many cores has."""
        return self.decoders if self.decoders != "auto" else max(1, int(cores) - 1)

    def store_conflicts(self) -> Iterator[Invalid]:
        """Yield what does not fit among the fields of this class."""
        low, high = (0, 9) if self.encode_format == "png" else (1, 100)
        if not low <= self.encode_quality <= high:
            yield Invalid("encode_quality", f"is not a quality of {self.encode_format}", f"give {low} to {high}")
