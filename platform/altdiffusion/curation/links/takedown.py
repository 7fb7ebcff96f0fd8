"""Rows that must go: what a list of hashes, images and links means in a lake, and how they are kept from returning.

The list is written like a blocklist, and read as one: what `dataset remove` takes out is what select and download
refuse once the same lines are in their blocklists.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from altdiffusion.curation.web.blocklist import KINDS, Blocklist, parse_list, parse_urls, read_lines
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, scan
from altdiffusion.lineage.impact import Impact, impact
from altdiffusion.lineage.takedown_record import Request, past_of, write_record
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.holdings import Holdings, Mask, Rows, search
from altdiffusion.storage.judges import TaughtJudge, discard_judges, judges_of
from altdiffusion.storage.likeness import Likeness
from altdiffusion.storage.removal import Removal, remove
from altdiffusion.storage.takedown_rows import write_rows
from altdiffusion.storage.tombstones import Tombstones, add_tombstones, digests_of, digests_of_hex, read_tombstones
from altdiffusion.urls import url_keys


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

    @property
    def tombstones(self) -> Tombstones:
        """The entries of the list, as hashes."""
        return Tombstones(
            sample_ids=self.blocklist.hashes,
            links=np.unique(digests_of(self.blocklist.urls.texts.to_pylist())),
            domains=np.unique(digests_of(self.blocklist.domains.texts.to_pylist())),
            images=np.unique(digests_of_hex(list(self.blocklist.image_sha256))),
        )

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


def widened(wanted: TakedownList, likeness: Likeness, *, same_bytes: bool, alike: bool) -> TakedownList:
    """Return a list that also names the images of the rows that it names, or those that look alike.

    Its SHA-256 is that of its lines.
    """
    images = [*(likeness.images if same_bytes or alike else ()), *(likeness.alike_images if alike else ())]
    added = sorted({f"sha256:{image}" for image in images} - {line.lower() for line in wanted.lines})
    if not added:
        return wanted
    lines = (*wanted.lines, *added)
    text = "".join(f"{line}\n" for line in lines).encode()
    more = parse_list("".join(f"{line}\n" for line in added).encode(), "images of the listed rows")
    return TakedownList(blocklist=Blocklist.union([wanted.blocklist, more]), lines=lines, sha256=files.sha256_hex(text))


def take_down(
    lake: Lake, before: Version, wanted: TakedownList, *, reason: str = "", by: str = ""
) -> tuple[Removal, Holdings]:
    """Make the version after `before` without the listed rows; also return where else in the lake they are.

    Before anything is removed, the lake gets the tombstones that keep the rows out of it, and a record of the takedown.

    Args:
        reason: free text for the record: why.
        by: free text for the record: who asked.

    Raises:
        AltDiffusionError: a shard of the version that may hold such rows is missing or damaged.
    """
    holdings = search(lake, wanted)
    keep_out(lake, [before], wanted, holdings, reason=reason, by=by)
    return remove(lake.dataset(before.manifest.name), before, holdings, wanted.sha256), holdings


def keep_out(
    lake: Lake, of: Sequence[Version], wanted: TakedownList, holdings: Holdings, *, reason: str = "", by: str = ""
) -> list[TaughtJudge]:
    """Keep the listed rows out of a lake: write tombstones, the rows found and the record, and delete judges.

    Nothing of the datasets is changed yet.

    Args:
        of: the versions from which the rows are to be removed.
        reason: free text for the record: why.
        by: free text for the record: who asked.

    Returns:
        The judges that were, or may have been, trained on rows that were ever taken down; they are deleted.

    Raises:
        AltDiffusionError: a record or a file of tombstones is damaged.
    """
    tombstones = add_tombstones(
        lake.uri,
        sample_ids=np.union1d(wanted.blocklist.hashes, holdings.linked),
        of_images=holdings.imaged,
        of_final_urls=holdings.led,
        links=wanted.blocklist.urls.texts.to_pylist(),
        domains=wanted.blocklist.domains.texts.to_pylist(),
        images=list(wanted.blocklist.image_sha256),
    )
    graph = scan(lake.uri)
    request = Request(
        list_sha256=wanted.sha256,
        entries=counted(wanted.lines),
        reason=reason,
        by=by,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        of=", ".join(str(version.ref) for version in of),
    )
    rows = write_rows(lake, holdings)
    write_record(lake.uri, request, impact_of(lake, wanted, holdings, graph), graph, tombstones=tombstones, rows=rows)
    return discard_judges(lake.uri, read_tombstones(lake.uri))


def impact_of(lake: Lake, wanted: TakedownList, holdings: Holdings, graph: Graph) -> Impact:
    """Return what holds or held the listed rows, and what was made from them; the records of takedowns count too."""
    past = past_of(lake.uri, wanted.tombstones)
    lines = [
        f"{record.request.when}, list {record.request.list_sha256[:12]}"
        + (f", by {record.request.by}" if record.request.by else "")
        + (f": {record.request.reason}" if record.request.reason else "")
        for record in past.records
    ]
    named = Tombstones(
        sample_ids=np.unique(np.concatenate([wanted.blocklist.hashes, holdings.linked, holdings.pictured])),
        images=wanted.tombstones.images,
    )
    return impact(
        past.fill(graph),
        holdings,
        past=past.rows,
        covered=past.covered,
        requests=lines,
        judges=judges_of(lake.uri, named),
        damaged=past.damaged,
    )


def numbers_of(lake: Lake, wanted: TakedownList, holdings: Holdings) -> dict[str, Rows]:
    """Return the numbers, ascending, of the listed rows by the reference of their version; of erased versions too, as
    far as the records of takedowns can be read."""
    found = dict(past_of(lake.uri, wanted.tombstones).numbers)
    for version in holdings.versions:
        rows = holdings.numbers(version)
        if len(rows):
            found[str(version.ref)] = rows
    return found


def blocklist_lines(wanted: TakedownList, holdings: Holdings) -> list[str]:
    """Return the lines that keep the rows from coming back.

    These are the list itself, and the ids of the rows that its images came by or that led to its links, so that these
    are not even asked for again.
    """
    return sorted({*wanted.lines, *(f"hash:{sample_id}" for sample_id in holdings.pictured.tolist())})


def _text(uri: str) -> bytes:
    """Return the content of a list.

    Raises:
        AltDiffusionError: there is no such file, or a link or an entry was given in place of a file.
    """
    if uri.startswith(("http://", "https://")) or uri.partition(":")[0] in KINDS:
        entry = uri if uri.partition(":")[0] in KINDS else f"url:{uri}"
        raise AltDiffusionError(
            f"list {uri}",
            "is an entry itself, where the path of a text file that lists entries is needed",
            f"write it into a file and name that: echo '{entry}' > list.txt, then --hashes list.txt",
        )
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
    return ", ".join(f"{count:,} {kind}" for kind, count in counted(lines).items())


def counted(lines: Sequence[str]) -> dict[str, int]:
    """Return the number of entries by kind, in the order in which the kinds occur."""
    return dict(Counter(line.partition(":")[0] for line in lines))
