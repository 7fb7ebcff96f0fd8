"""Rows that must go: what a list of hashes, images and links means in a lake, and how they are kept from returning.

The list is written like a blocklist, and read as one: what `dataset remove` takes out is what select and download
refuse once the same lines are in their blocklists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from altdiffusion.curation.tally import tally, tally_images
from altdiffusion.curation.web.blocklist import Blocklist, parse_list, parse_urls, read_lines
from altdiffusion.curation.web.urls import url_keys
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import Holdings, Mask, search
from altdiffusion.storage.removal import Removal, remove


@dataclass(frozen=True, kw_only=True)
class TakedownList:
    """A list as rows are searched by it (`holdings.Wanted`)."""

    blocklist: Blocklist
    lines: tuple[str, ...]
    """The lines of the file, without comments."""
    sha256: str
    """SHA-256 (hex) of the file."""

    @property
    def sample_ids(self) -> pa.Array:
        """int64: rows by id."""
        return pa.array(self.blocklist.hashes)

    @property
    def images(self) -> pa.Array:
        """string: rows by the SHA-256 (hex) of their image."""
        return pa.array(list(self.blocklist.image_sha256), pa.string())

    def links(self, urls: pa.ChunkedArray) -> Mask:
        """Return which of these links are listed, by link or by domain."""
        return self.blocklist.links(url_keys(urls))


def read_list(uri: str) -> TakedownList:
    """Read a file of `hash:`, `sha256:`, `url:` and `domain:` lines.

    Raises:
        AltDiffusionError: it is missing or malformed, has an entry that can match nothing, or lists nothing.
    """
    text = _text(uri)
    blocklist = parse_list(text, f"list {uri}")
    lines = tuple(line for line in read_lines(text, f"list {uri}").to_pylist() if line and not line.startswith("#"))
    return _checked(TakedownList(blocklist=blocklist, lines=lines, sha256=files.sha256_hex(text)), uri)


def read_urls(uri: str) -> TakedownList:
    """Read a file of one link per line.

    Raises:
        AltDiffusionError: it is missing, has a line that is not a link, or lists nothing.
    """
    text = _text(uri)
    blocklist, lines = parse_urls(text, f"list {uri}")
    listed = tuple(f"url:{line}" for line in lines)
    return _checked(TakedownList(blocklist=blocklist, lines=listed, sha256=files.sha256_hex(text)), uri)


def take_down(lake: Lake, before: Version, wanted: TakedownList) -> tuple[Removal, Holdings]:
    """Make the version after `before` without the listed rows; also return where else in the lake they are."""
    holdings = search(lake, wanted)
    counts = {"links": tally, "images": tally_images}
    removal = remove(
        lake.dataset(before.manifest.name), before, holdings, wanted.sha256, tally=counts.get(before.manifest.kind)
    )
    return removal, holdings


def blocklist_lines(wanted: TakedownList, holdings: Holdings) -> list[str]:
    """Return the lines that keep the rows from coming back.

    These are the list itself, and the ids of the rows that its images came by or that led to its links, so that these
    are not even asked for again.
    """
    return sorted({*wanted.lines, *(f"hash:{sample_id}" for sample_id in holdings.pictured.tolist())})


def _text(uri: str) -> bytes:
    try:
        return files.read_bytes(uri)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"list {uri}", "is not there", "give the path of a text file") from error


def _checked(wanted: TakedownList, uri: str) -> TakedownList:
    if not wanted.lines:
        raise AltDiffusionError(
            f"list {uri}", "lists nothing", "write hash:<id>, sha256:<hex>, url:<link> or domain:<name> lines"
        )
    return wanted


def described(lines: Sequence[str]) -> str:
    """Return how many entries of which kind."""
    kinds = [line.partition(":")[0] for line in lines]
    return ", ".join(f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(kinds))
