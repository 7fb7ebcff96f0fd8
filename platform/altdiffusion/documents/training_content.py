"""What a checkpoint was trained on, read from manifests: datasets, sources, models, sizes, and the hosts of its images.

Everything up to the checkpoint counts: the runs that it continued or started from, and what their datasets were made
from. What nobody recorded stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.documents.history import History, Made, history_of
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import optional_document
from altdiffusion.urls import url_keys

_HOST = r"^(?:[^/?@]*@)?(?P<host>[a-z0-9](?:[a-z0-9.\-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]+)?(?:[/?]|$)"
"""The host of a link in its one form (`urls.url_keys`), which begins behind the scheme."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A number that is only known to be between two others, both included."""

    least: int
    most: int | None
    """None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Domains:
    """Rows by host of the images that were trained on."""

    rows: Mapping[str, int]
    unnamed: int
    """Rows whose link has no host."""
    unread: tuple[str, ...]
    """Versions that were erased, so that their links are not known."""

    def top(self, *, small_provider: bool = False) -> list[tuple[str, int]]:
        """Return the hosts with the most rows: the top 10 %, or for small providers 5 % and at most 1,000."""
        ordered = sorted(self.rows.items(), key=lambda item: (-item[1], item[0]))
        part = -(-len(ordered) // (20 if small_provider else 10))  # rounded up: one host of three is listed
        return ordered[: min(part, 1000) if small_provider else part]


@dataclass(frozen=True, kw_only=True)
class TrainingContent:
    """What a checkpoint was trained on."""

    checkpoint: Node
    history: History
    read: tuple[Made, ...]
    """The versions that a training run read."""
    gone: tuple[str, ...]
    """References of such versions that the lake no longer holds."""
    domains: Domains
    images: Sizes
    tokens: Sizes
    models: tuple[tuple[Node, Mapping[str, Any]], ...]
    """Models that it was made from, with the content of their lineage.json."""

    @property
    def curation(self) -> tuple[Made, ...]:
        """All dataset versions on the way, parents first."""
        return self.history.made

    @property
    def sources(self) -> list[tuple[Node, Mapping[str, Any]]]:
        """The sources of links and texts, each with its settings where a manifest has them."""
        settings = {str(one.get("name")): one for made in self.curation for one in _source_settings(made.config)}
        return [(node, settings.get(node.name, {})) for node in self.history.nodes("source")]

    def rejects(self, reasons: Collection[str]) -> dict[str, int]:
        """Return the rows that were rejected for some reasons, by reason, over all steps."""
        found: Counter[str] = Counter()
        for made in self.history.latest:
            found.update({name: rows for name, rows in made.rejects.items() if name in reasons})
        return dict(sorted(found.items()))

    def languages(self) -> dict[str, int]:
        """Return the rows by language over all versions that training read."""
        found: Counter[str] = Counter()
        for made in self.read:
            found.update(made.node.facts["rows_by_language"])
        return dict(found)


def training_content(lake: Lake, name: str, graph: Graph) -> TrainingContent:
    """Return what a checkpoint was trained on.

    Args:
        name: of a checkpoint: a run (its newest one), run/step-n, or a reference.
        graph: of the lake.

    Raises:
        AltDiffusionError: there is no such checkpoint, or a manifest or shard on the way is damaged.
    """
    checkpoint = _checkpoint(graph, name)
    history = history_of(lake, [checkpoint.ref])
    made = {one.node.ref: one for one in history.made}
    parents = [parent for node in history.nodes("checkpoint") for parent in node.parents]
    refs = list(dict.fromkeys(parent for parent in parents if history.graph.nodes[parent].kind == "dataset"))
    read = [made[ref] for ref in refs if ref in made]
    return TrainingContent(
        checkpoint=checkpoint,
        history=history,
        read=tuple(read),
        gone=tuple(ref for ref in refs if ref not in made),
        domains=count_domains(lake, _images_of(read, history)),
        images=_images(read, len(refs) - len(read)),
        tokens=_tokens(lake, read, len(refs) - len(read)),
        models=tuple((node, _model_facts(node)) for node in history.nodes("model")),
    )


def _checkpoint(graph: Graph, name: str) -> Node:
    found = graph.find(f"checkpoint:{name.removeprefix('checkpoint:')}")  # a dataset may have the name of a run
    if not found:
        raise graph.unknown(name, " that is a checkpoint")
    if len(found) > 1:
        raise graph.ambiguous(name, [node.label for node in found])
    return found[0]


def _images_of(read: Sequence[Made], history: History) -> list[Node]:
    """Return the versions that hold the links of what was trained on: the nearest ones above each dataset."""
    found: dict[str, Node] = {}
    waiting = [made.node.ref for made in read]
    while waiting:
        node = history.graph.nodes[waiting.pop()]
        if node.kind == "dataset" and node.facts.get("holds") in (None, "images", "links"):
            found[node.ref] = node
        elif node.kind == "dataset" and node.facts["holds"] not in ("parallel", "scores"):
            waiting.extend(node.parents)
    return [found[ref] for ref in sorted(found)]


def count_domains(lake: Lake, nodes: Sequence[Node]) -> Domains:
    """Return the rows of some versions of images or links by host; one column of them is read.

    Raises:
        AltDiffusionError: a version or one of its shards is damaged.
    """
    rows: Counter[str] = Counter()
    unnamed, unread = 0, []
    for node in nodes:
        if node.missing:
            unread.append(node.ref)
            continue
        for table in lake.version(node.ref).iter_tables(["url"]):
            hosts, without = _hosts(table["url"])
            rows.update(hosts)
            unnamed += without
    return Domains(rows=rows, unnamed=unnamed, unread=tuple(unread))


def _hosts(urls: pa.ChunkedArray) -> tuple[dict[str, int], int]:
    hosts = pc.struct_field(pc.extract_regex(url_keys(urls), _HOST), "host")
    counted = {str(one["values"]): int(one["counts"]) for one in pc.value_counts(hosts.drop_null()).to_pylist()}
    return counted, int(hosts.null_count)


def _images(read: Sequence[Made], gone: int) -> Sizes:
    """Return how many images were trained on: an image may be in several datasets, of several resolutions."""
    rows = [made.rows for made in read if made.kind == "latents"]
    return Sizes(least=max(rows, default=0), most=None if gone else sum(rows))


def _tokens(lake: Lake, read: Sequence[Made], gone: int) -> Sizes:
    """Return how many tokens the texts have: at least one each, and at most as many as they are padded to."""
    texts = [made.rows * (2 if made.kind == "parallel" else 1) for made in read]
    known = not gone and not any(made.node.missing for made in read)
    most = None
    if known:
        lengths = [_padded_to(lake.version(made.node.ref)) for made in read]
        most = sum(number * length for number, length in zip(texts, lengths, strict=True))
    return Sizes(least=max(texts, default=0), most=most)


def _padded_to(version: Version) -> int:
    """Return how many tokens the texts of a version are padded to, from its first row."""
    columns = [name for name in ("token_ids", "teacher_ids") if name in version.schema_names]
    if not columns or not version.shards:
        return 0
    table = version.read_shard(0, columns)
    return max((len(table[name][0].as_py() or ()) for name in columns if table.num_rows), default=0)


def _model_facts(node: Node) -> Mapping[str, Any]:
    document = optional_document(files.within(node.uri, "lineage.json")) if node.uri else None
    return {} if document is None else document.value


def _source_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of sources within a config, at any depth: objects with a name and a preset."""
    if isinstance(config, Mapping):
        if isinstance(config.get("name"), str) and "preset" in config:
            yield config
        for value in config.values():
            yield from _source_settings(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _source_settings(value)
