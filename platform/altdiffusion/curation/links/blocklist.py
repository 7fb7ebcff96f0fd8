"""Rows that must never come back: links, whole domains, row hashes and pictures, from a pinned text file.

Lists of millions of entries are held as sorted 64-bit hashes beside their texts: an entry is found by its hash, and
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.assets import read_pinned
from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.hashing import hash64
from altdiffusion.curation.links.urls import url_keys
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref

KINDS = ("url", "domain", "hash", "sha256")
_HASH, _SHA256 = r"^-?[0-9]{1,19}$", r"^[0-9a-fA-F]{64}$"
_HOST = r"^(?:[^/?@]*@)?(?P<host>\[[^\]]*\]|[^/?:]*)"


class TextSet:
    """A set of texts, looked up by column."""

    def __init__(self, texts: pa.Array) -> None:
        hashes = hash64(texts)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._texts = hashes[order], texts.take(pa.array(order))

    def __len__(self) -> int:
        return len(self._texts)

    def holds(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """[N] whether each text is in the set; null is not."""
        found = np.zeros(len(texts), bool)
        if not len(self):
            return found
        hashes = hash64(texts)
        at = np.searchsorted(self._hashes, hashes)
        rows = np.arange(len(texts))
        while len(rows):  # more than once only where two entries share a hash
            rows = rows[at[rows] < len(self)]
            rows = rows[self._hashes[at[rows]] == hashes[rows]]
            same = pc.equal(self._texts.take(pa.array(at[rows])), texts.take(pa.array(rows)))
            found[rows] |= np.asarray(pc.fill_null(same, False), bool)
            at[rows] += 1
            rows = rows[~found[rows]]
        return found


class DigestSet(Set[str]):
    """A set of SHA-256 digests, given and taken in hex, held in 32 bytes each."""

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._digests = np.unique(np.array([bytes.fromhex(digest) for digest in digests], "S32"))

    def __contains__(self, digest: object) -> bool:
        if not isinstance(digest, str) or not len(self):
            return False
        wanted = np.array(bytes.fromhex(digest), "S32")
        at = int(np.searchsorted(self._digests, wanted))
        return at < len(self) and bool(self._digests[at] == wanted)

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[str]:
        return (bytes(digest).ljust(32, b"\0").hex() for digest in self._digests)


@dataclass(frozen=True, kw_only=True)
class Blocklist:
    """What a file lists."""

    urls: TextSet
    """Keys of links (`urls.url_key`): a link is listed however it is spelled."""
    domains: TextSet
    """Lower case; a domain covers its subdomains."""
    hashes: npt.NDArray[np.int64]
    """Row ids, ascending."""
    image_sha256: DigestSet
    """Pictures, by the SHA-256 of their bytes as downloaded."""

    def __len__(self) -> int:
        return len(self.urls) + len(self.domains) + len(self.hashes) + len(self.image_sha256)

    def blocks(self, keys: pa.Array, sample_id: pa.Array) -> npt.NDArray[np.bool_]:
        """[N] whether each row is listed, by the key of its link and its id."""
        listed = self.urls.holds(keys)
        if len(self.hashes):
            ids = sample_id.to_numpy(zero_copy_only=False)
            at = np.minimum(np.searchsorted(self.hashes, ids), len(self.hashes) - 1)
            listed |= self.hashes[at] == ids
        if len(self.domains):
            hosts: Any = pc.struct_field(pc.extract_regex(keys, _HOST), "host").dictionary_encode()
            listed |= np.append(self._domain(hosts.dictionary), False)[
                pc.fill_null(hosts.indices, len(hosts.dictionary)).to_numpy(zero_copy_only=False)
            ]
        return listed

    def _domain(self, hosts: pa.Array) -> npt.NDArray[np.bool_]:
        """[N] whether each host or a domain above it is listed."""
        listed = np.zeros(len(hosts), bool)
        rows = np.arange(len(hosts))
        while len(rows):
            listed[rows] |= self.domains.holds(hosts)
            deeper = np.asarray(pc.match_substring(hosts, "."), bool) & ~listed[rows]
            rows = rows[deeper]
            hosts = pc.replace_substring_regex(hosts.filter(pa.array(deeper)), r"^[^.]*\.", "", max_replacements=1)
        return listed


def source_blocklist(config: SourceConfig) -> Blocklist | None:
    """The blocklist of a source; None where it has none.

    Raises:
        AltDiffusionError: the file is missing, another one or malformed, or lists nothing although this source needs
            a list with something in it.
    """
    if config.blocklist is None or config.blocklist_sha256 is None:
        return None
    found = load_blocklist(config.blocklist, config.blocklist_sha256)
    if not len(found) and config.shape.published and not config.shape.safe:
        raise AltDiffusionError(
            f"blocklist {config.blocklist} of source {config.name}",
            f"lists nothing, but {config.preset} still holds links that its publisher has removed since",
            "list what was removed, or use a research-safe set",
        )
    return found


def load_blocklist(uri: str, sha256: str) -> Blocklist:
    """Reads `url:...`, `domain:...`, `hash:...` and `sha256:...` lines; empty lines and `#` comments are skipped.

    Raises:
        AltDiffusionError: the file is missing or another one, or a line is none of these.
    """
    try:
        text = pa.array([read_pinned(uri, sha256)], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise AltDiffusionError(f"blocklist {uri}", "is not UTF-8 text", "give a text file") from error
    entries = pc.utf8_trim_whitespace(pc.split_pattern(text, "\n").flatten()).cast(pa.string())
    open_lines = np.asarray(pc.or_(pc.equal(entries, ""), pc.starts_with(entries, "#")), bool)
    values: dict[str, pa.Array] = {}
    for kind in KINDS:
        mine = np.asarray(pc.match_substring_regex(entries, f"^{kind}:{_value(kind)}"), bool)
        values[kind] = pc.utf8_slice_codeunits(entries.filter(pa.array(mine)), len(kind) + 1)
        open_lines |= mine
    wrong = np.flatnonzero(~open_lines)
    if len(wrong):
        raise AltDiffusionError(
            f"blocklist {uri}, line {wrong[0] + 1}",
            f"is {entries[int(wrong[0])].as_py()[:80]!r}",
            "write url:..., domain:..., hash:<64-bit integer> or sha256:<64 hex digits>",
        )
    return Blocklist(
        urls=TextSet(url_keys(values["url"])),
        domains=TextSet(pc.utf8_trim(pc.utf8_lower(values["domain"]), ".")),
        hashes=np.unique(_integers(values["hash"], uri)),
        image_sha256=DigestSet(values["sha256"].to_pylist()),
    )


def _value(kind: str) -> str:
    return {"hash": _HASH[1:], "sha256": _SHA256[1:]}.get(kind, r".+$")


def _integers(values: pa.Array, uri: str) -> npt.NDArray[np.int64]:
    try:
        return np.asarray(values.cast(pa.int64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise AltDiffusionError(
            f"blocklist {uri}", f"has a hash that is no 64-bit integer ({error})", "mend that line"
        ) from error


def blocklist_refs(configs: Sequence[SourceConfig]) -> list[Ref]:
    """References of the blocklists that sources name, each file once, in the order of the sources."""
    digests = [config.blocklist_sha256 for config in configs if config.blocklist_sha256 is not None]
    return [Ref("blocklist", "sources", digest) for digest in dict.fromkeys(digests)]
