"""Rows that must never return: links, whole domains, row hashes and images, from a pinned text file.

Links and domains are compared in the one form that is requested (`urls`), so an entry holds however it is spelled. An
entry that can match nothing is refused with its line: its author believes that something is kept out.

Lists of millions of entries are held as sorted 64-bit hashes next to their texts: an entry is found by its hash, and
compared.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.web.addresses import may_be_asked
from altdiffusion.diffusion.pinned_files import read_pinned
from altdiffusion.errors import AltDiffusionError
from altdiffusion.hashing import hash64
from altdiffusion.refs import Ref
from altdiffusion.urls import AROUND, Target, keys_and_links, parse, target_key

KINDS = ("url", "domain", "hash", "sha256")
_HASH, _SHA256 = re.compile(r"-?[0-9]{1,19}"), r"^[0-9a-fA-F]{64}$"
_SHOWN = 5
"""Wrong lines that an error names; one more is looked for, to state that there are more."""
_NOT_IN_NAME = re.compile(r"[\s/\\?#@*%]|(?<!\]):(?![^\[]*\])")
"""What cannot be in a host's name: it would make the entry a path, a pattern or a port."""
_HOST = r"^(?:[^/?@]*@)?(?P<host>\[[^\]]*\]|[^/?:]*)"


class TextSet:
    """A set of texts, looked up by column."""

    def __init__(self, texts: pa.Array) -> None:
        hashes = hash64(texts)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self.texts = hashes[order], texts.take(pa.array(order))

    def __len__(self) -> int:
        return len(self.texts)

    def holds(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """Return whether each text is in the set; null is not."""
        found = np.zeros(len(texts), bool)
        if not len(self):
            return found
        hashes = hash64(texts)
        at = np.searchsorted(self._hashes, hashes)
        rows = np.arange(len(texts))
        while len(rows):  # more than once only where two entries share a hash
            rows = rows[at[rows] < len(self)]
            rows = rows[self._hashes[at[rows]] == hashes[rows]]
            same = pc.equal(self.texts.take(pa.array(at[rows])), texts.take(pa.array(rows)))
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
    """Images, by the SHA-256 of their bytes as downloaded."""

    @classmethod
    def union(cls, lists: Sequence[Blocklist]) -> Blocklist:
        """Return what any of them lists."""
        return cls(
            urls=TextSet(pa.concat_arrays([one.urls.texts for one in lists])),
            domains=TextSet(pa.concat_arrays([one.domains.texts for one in lists])),
            hashes=np.unique(np.concatenate([one.hashes for one in lists])),
            image_sha256=DigestSet(digest for one in lists for digest in one.image_sha256),
        )

    def __len__(self) -> int:
        return len(self.urls) + len(self.domains) + len(self.hashes) + len(self.image_sha256)

    def blocks(self, keys: pa.Array, sample_id: pa.Array) -> npt.NDArray[np.bool_]:
        """Return whether each row is listed, by the key of its link and its id."""
        listed = self.links(keys)
        if len(self.hashes):
            ids = sample_id.to_numpy(zero_copy_only=False)
            at = np.minimum(np.searchsorted(self.hashes, ids), len(self.hashes) - 1)
            listed |= self.hashes[at] == ids
        return listed

    def links(self, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Return whether each link is listed, by its key or its domain; null is not."""
        listed = self.urls.holds(keys)
        if len(self.domains):
            hosts: Any = pc.struct_field(pc.extract_regex(keys, _HOST), "host").dictionary_encode()
            listed |= np.append(self._domain(hosts.dictionary), False)[
                pc.fill_null(hosts.indices, len(hosts.dictionary)).to_numpy(zero_copy_only=False)
            ]
        return listed

    def names(self, target: Target) -> bool:
        """Return whether what is about to be requested is listed, by its link or its domain."""
        return bool(self.links(pa.array([target_key(target)], pa.string()))[0])

    def _domain(self, hosts: pa.Array) -> npt.NDArray[np.bool_]:
        """Return whether each host or a domain above it is listed."""
        listed = np.zeros(len(hosts), bool)
        rows = np.arange(len(hosts))
        while len(rows):
            listed[rows] |= self.domains.holds(hosts)
            deeper = np.asarray(pc.match_substring(hosts, "."), bool) & ~listed[rows]
            rows = rows[deeper]
            hosts = pc.replace_substring_regex(hosts.filter(pa.array(deeper)), r"^[^.]*\.", "", max_replacements=1)
        return listed


def source_blocklist(config: SourceConfig) -> Blocklist | None:
    """Return the blocklist of a source; None where it has none.

    Raises:
        AltDiffusionError: the file is missing, another one or malformed, or lists nothing although this source needs
            a list with something in it.
    """
    if config.blocklist is None or config.blocklist_sha256 is None:
        return None
    blocklist = load_blocklist(config.blocklist, config.blocklist_sha256)
    if not len(blocklist) and config.shape.published and not config.shape.safe:
        raise AltDiffusionError(
            f"blocklist {config.blocklist} of source {config.name}",
            f"lists nothing, but {config.preset} still holds links that its publisher has removed since",
            "list what was removed, or use a research-safe set",
        )
    return blocklist


def load_blocklist(uri: str, sha256: str) -> Blocklist:
    """Read `url:...`, `domain:...`, `hash:...` and `sha256:...` lines; empty lines and `#` comments are skipped.

    Raises:
        AltDiffusionError: the file is missing or another one, or a line is none of these or can match nothing.
    """
    return parse_list(read_pinned(uri, sha256), f"blocklist {uri}")


def parse_list(data: bytes, what: str) -> Blocklist:
    """Read the entries of a list.

    Args:
        what: names the file in an error.

    Raises:
        AltDiffusionError: it is not text, or a line is not an entry or can match nothing.
    """
    lines = read_lines(data, what)
    wrong: dict[int, str] = {}
    values: dict[str, pa.Array] = {}
    left = np.asarray(pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#"))), bool)
    for kind in KINDS:
        mine = np.flatnonzero(left & np.asarray(pc.starts_with(lines, f"{kind}:"), bool))
        left[mine] = False
        given = pc.utf8_trim(pc.utf8_slice_codeunits(lines.take(pa.array(mine)), len(kind) + 1), AROUND)
        values[kind], problems = _READ[kind](given)
        wrong.update((int(mine[place]), problem) for place, problem in problems.items())
    wrong.update((int(row), "which is not of one of the four kinds") for row in np.flatnonzero(left)[: _SHOWN + 1])
    _refuse(lines, wrong, what)
    return Blocklist(
        urls=TextSet(values["url"]),
        domains=TextSet(values["domain"]),
        hashes=np.unique(values["hash"].to_numpy(zero_copy_only=False)),
        image_sha256=DigestSet(values["sha256"].to_pylist()),
    )


def parse_urls(data: bytes, what: str) -> tuple[Blocklist, tuple[str, ...]]:
    """Read a list of one link per line; return it and its lines.

    Raises:
        AltDiffusionError: it is not text, or a line is not a link.
    """
    lines = read_lines(data, what)
    entries = np.asarray(pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#"))), bool)
    given = lines.filter(pa.array(entries))
    keys, problems = _urls(given)
    places = np.flatnonzero(entries)
    _refuse(
        lines, {int(places[place]): problem for place, problem in problems.items()}, what, "write one link per line"
    )
    nothing = pa.array([], pa.string())
    blocklist = Blocklist(
        urls=TextSet(keys), domains=TextSet(nothing), hashes=np.zeros(0, np.int64), image_sha256=DigestSet()
    )
    return blocklist, tuple(given.to_pylist())


def read_lines(data: bytes, what: str) -> pa.Array:
    """Return the lines of a text file (UTF-8, or UTF-16 with its mark), string, without white space around them.

    Raises:
        AltDiffusionError: it is not text.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        with contextlib.suppress(UnicodeDecodeError):
            data = data.decode("utf-16").encode()
    try:
        text = pa.array([data], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise AltDiffusionError(what, "is not UTF-8 text", "give a text file") from error
    lines = pc.list_flatten(pc.split_pattern_regex(text, r"\r\n|\n|\r"))
    return pc.utf8_trim(lines, AROUND).cast(pa.string())


def _refuse(lines: pa.Array, wrong: Mapping[int, str], what: str, remedy: str = "") -> None:
    if not wrong:
        return
    rows = sorted(wrong)
    shown = [f"line {row + 1}: is {lines[row].as_py()[:80]!r}, {wrong[row]}" for row in rows[:_SHOWN]]
    if len(rows) > _SHOWN:
        shown.append("and so on")
    first, *more = shown
    raise AltDiffusionError(
        f"{what}, {first}",
        "; ".join(more) or "an entry that can match nothing keeps nothing out",
        remedy
        or "write url:http(s)://..., domain:<host name>, hash:<64-bit integer> or sha256:<64 hex digits>, "
        "and comments on lines of their own",
    )


Read = tuple[pa.Array, dict[int, str]]
"""What the entries of a kind mean, and what is wrong with which of them."""


def _urls(given: pa.Array) -> Read:
    """Return the keys of links."""
    keys, links = keys_and_links(given)
    wrong = {
        int(place): "which is not an http or https link with a host" for place in np.flatnonzero(~links)[: _SHOWN + 1]
    }
    commented = np.asarray(pc.match_substring_regex(given, r"\s#"), bool)
    wrong.update((int(place), "which has a comment behind it") for place in np.flatnonzero(commented)[: _SHOWN + 1])
    hosts: Any = pc.struct_field(pc.extract_regex(keys, _HOST), "host").dictionary_encode()
    never = [not may_be_asked(host.strip("[]")) for host in hosts.dictionary.to_pylist()]
    if any(never):
        places = np.flatnonzero(np.array(never)[hosts.indices.to_numpy(zero_copy_only=False)] & links)[: _SHOWN + 1]
        wrong.update((int(place), "whose host cannot be a name") for place in places)
    return keys, wrong


def _domains(given: pa.Array) -> Read:
    """Return the hosts in the form of `urls.Target`, IPv6 addresses in brackets."""
    hosts, wrong = [], {}
    for place, text in enumerate(given.to_pylist()):
        name = text.strip(".。．｡")
        target = parse(f"http://{name}/") if not _NOT_IN_NAME.search(name) else None
        if target is None or not may_be_asked(target.host) or target.path != "/":
            wrong[place] = "which is not the name of a host (a domain covers all below it: no * is needed)"
            hosts.append("")
        else:
            hosts.append(target.authority)
    return pa.array(hosts, pa.string()), wrong


def _hashes(given: pa.Array) -> Read:
    """Return row ids, int64."""
    ids = [int(text) if _HASH.fullmatch(text) else None for text in given.to_pylist()]
    wrong = {
        place: "which is not a 64-bit integer"
        for place, value in enumerate(ids)
        if value is None or not -(1 << 63) <= value < 1 << 63
    }
    return pa.array([0 if place in wrong else value for place, value in enumerate(ids)], pa.int64()), wrong


def _digests(given: pa.Array) -> Read:
    good = np.asarray(pc.match_substring_regex(given, _SHA256), bool)
    return given, {int(place): "which is not 64 hex digits" for place in np.flatnonzero(~good)[: _SHOWN + 1]}


_READ: Mapping[str, Callable[[pa.Array], Read]] = {
    "url": _urls, "domain": _domains, "hash": _hashes, "sha256": _digests
}  # fmt: skip


def blocklist_refs(configs: Sequence[SourceConfig]) -> list[Ref]:
    """Return the references of the blocklists that sources name, each file once, in the order of the sources."""
    digests = [config.blocklist_sha256 for config in configs if config.blocklist_sha256 is not None]
    return [Ref("blocklist", "sources", digest) for digest in dict.fromkeys(digests)]
