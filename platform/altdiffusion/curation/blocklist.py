"""Rows that must never come back: links, whole domains and row hashes from a pinned text file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.assets import read_pinned
from altdiffusion.errors import AltDiffusionError

_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:@]+)"


@dataclass(frozen=True, kw_only=True)
class Blocklist:
    urls: pa.Array
    domains: pa.Array
    hashes: pa.Array

    def blocks(self, table: pa.Table) -> pa.ChunkedArray:
        """Whether each row (columns url, sample_id) is listed; a domain covers its subdomains."""
        listed = pc.or_(
            pc.fill_null(pc.is_in(table["url"], value_set=self.urls), False),
            pc.is_in(table["sample_id"], value_set=self.hashes),
        )
        host = pc.utf8_lower(pc.struct_field(pc.extract_regex(table["url"], _HOST), "host"))
        while len(self.domains) and host.null_count < len(host):
            listed = pc.or_(listed, pc.fill_null(pc.is_in(host, value_set=self.domains), False))
            # the parent domain; null once there is no dot left
            host = pc.struct_field(pc.extract_regex(host, r"^[^.]+\.(?P<parent>.+)$"), "parent")
        return listed


def load_blocklist(uri: str, sha256: str) -> Blocklist:
    """Reads `url:...`, `domain:...` and `hash:...` lines; empty lines and `#` comments are skipped.

    Raises:
        AltDiffusionError: the file is missing or another one, or a line is none of these.
    """
    found: dict[str, list[str]] = {"url": [], "domain": [], "hash": []}
    for number, line in enumerate(read_pinned(uri, sha256).decode().splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        kind, colon, value = entry.partition(":")
        good = bool(colon) and kind in found and bool(value)
        if not good or (kind == "hash" and not value.removeprefix("-").isdigit()):
            raise AltDiffusionError(
                f"blocklist {uri}, line {number}", f"is {entry[:80]!r}", "write url:..., domain:... or hash:<integer>"
            )
        found[kind].append(value.lower().strip(".") if kind == "domain" else value)
    return Blocklist(
        urls=pa.array(found["url"], pa.string()),
        domains=pa.array(found["domain"], pa.string()),
        hashes=pa.array([int(value) for value in found["hash"]], pa.int64()),
    )
