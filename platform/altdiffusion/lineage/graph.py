"""The lineage of a lake as a graph, read from its manifests alone.

Nodes are dataset versions (datasets/*/versions/*/manifest.json), checkpoints (checkpoints/*/*/COMPLETE.json), exports
(exports/*/*/lineage.json), models (models/*/lineage.json, or only named by a parent reference) and sources (only
named). An edge leads from a thing to each thing that it was made from. A thing that a manifest names but the lake does
not hold stays in the graph, marked missing.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Dataset, Lake
from altdiffusion.storage.documents import Document, parse_document
from altdiffusion.storage.index import Shelf, read_shelf
from altdiffusion.storage.seals import check_checksum, check_seal, digest_of_lineage, is_sealed
from altdiffusion.storage.summaries import Summary, read_summaries, summary_of

Direction = Literal["up", "down"]
NODE_KINDS = ("dataset", "checkpoint", "model", "export", "source", "blocklist", "image", "prompt", "row")
MIN_DIGITS = 8
_HEX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A thing with a digest. `ref` is `kind:name@digest` and the key of the node."""

    ref: str
    kind: str  # one of NODE_KINDS
    name: str
    digest: str
    parents: tuple[str, ...] = ()
    uri: str = ""  # folder of its manifest; empty for a node that is only named
    missing: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)  # from its manifest: kind, rows, step, stage, counts

    @property
    def label(self) -> str:
        """The reference for display, kind:name@12 digits."""
        return f"{self.kind}:{self.name}@{self.digest[:12]}" if self.digest else f"{self.kind}:{self.name}"

    def to_json(self) -> dict[str, Any]:
        return {
            "ref": self.ref,
            "kind": self.kind,
            "name": self.name,
            "digest": self.digest,
            "uri": self.uri,
            "missing": self.missing,
            **dict(self.facts),
        }


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The part of the graph above or below one node: its nodes, and for each node the next ones in that direction."""

    root: str
    direction: Direction
    nodes: Mapping[str, Node]
    steps: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        edges = sorted(
            {(ref, parent) for ref, node in self.nodes.items() for parent in node.parents if parent in self.nodes}
        )
        return {
            "root": self.root,
            "direction": self.direction,
            "nodes": [self.nodes[ref].to_json() for ref in sorted(self.nodes)],
            "edges": [{"from": parent, "to": ref} for ref, parent in edges],
        }


class Graph:
    """All nodes of a lake; `scan` creates it."""

    def __init__(
        self, lake_uri: str, nodes: Iterable[Node], heads: Mapping[str, str], damaged: Sequence[AltDiffusionError] = ()
    ) -> None:
        self.lake_uri = lake_uri
        self.damaged = tuple(damaged)  # what could not be read: the rest is here
        self.heads = dict(heads)  # dataset name -> digest that the bare name means
        self.nodes: dict[str, Node] = {node.ref: node for node in nodes}
        exports = {node.digest: node.ref for node in self.nodes.values() if node.kind == "export"}
        for node in list(self.nodes.values()):
            for parent in node.parents:
                if parent not in self.nodes:
                    self.nodes[parent] = _named_only(parent, exports)
        self._children: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for parent in node.parents:
                self._children.setdefault(parent, []).append(node.ref)

    def parents_first(self) -> list[str]:
        """Return the references of all nodes, each after everything that it was made from, in a fixed order."""
        done: dict[str, None] = {}
        for start in sorted(self.nodes):
            waiting = [(start, False)]
            while waiting:
                ref, ready = waiting.pop()
                if ready:
                    done.setdefault(ref)
                elif ref not in done:
                    waiting.append((ref, True))
                    waiting.extend((parent, False) for parent in self.parents(ref))
        return list(done)

    def with_nodes(self, extra: Sequence[Node]) -> Graph:
        """Return the same graph with `extra` nodes (rows and images, which manifests do not name)."""
        return Graph(self.lake_uri, [*self.nodes.values(), *extra], self.heads, self.damaged)

    def parents(self, ref: str) -> tuple[str, ...]:
        """Return the things that `ref` was made from, in the order of its manifest."""
        return tuple(dict.fromkeys(self.nodes[ref].parents))

    def children(self, ref: str) -> tuple[str, ...]:
        """Return the things that were made from `ref`, in a fixed order."""
        return tuple(sorted(set(self._children.get(ref, ())), key=lambda child: _order(self.nodes[child])))

    def up(self, ref: str) -> Slice:
        """Return everything that `ref` (a key of `nodes`) was made from."""
        return self._walk(ref, "up", self.parents)

    def down(self, ref: str) -> Slice:
        """Return everything that was made from `ref`."""
        return self._walk(ref, "down", self.children)

    def below(self, refs: Iterable[str]) -> frozenset[str]:
        """Return these things (keys of `nodes`) and everything that was made from any of them."""
        found: set[str] = set()
        waiting = list(refs)
        while waiting:
            ref = waiting.pop()
            if ref not in found:
                found.add(ref)
                waiting.extend(self._children.get(ref, ()))
        return frozenset(found)

    def _walk(self, root: str, direction: Direction, step: Callable[[str], tuple[str, ...]]) -> Slice:
        steps: dict[str, tuple[str, ...]] = {}
        waiting = [root]
        while waiting:
            ref = waiting.pop()
            if ref not in steps:
                steps[ref] = step(ref)
                waiting.extend(steps[ref])
        return Slice(root=root, direction=direction, nodes={ref: self.nodes[ref] for ref in steps}, steps=steps)

    def find(self, text: str) -> list[Node]:
        """Return the nodes that `text` may mean.

        The text is a reference, `name@prefix`, `kind:name`, a name, a run's name or a digest prefix. A bare dataset
        name means its head, a bare run name its newest checkpoint. A checkpoint takes precedence over its export.
        """
        if text in self.nodes:
            return [self.nodes[text]]
        kind, _, rest = text.rpartition(":")
        name, _, prefix = rest.partition("@")
        if "@" in rest and not re.fullmatch(r"[0-9a-f]{8,64}", prefix):
            return []
        known = [
            node for node in self.nodes.values() if (not kind or kind == node.kind) and node.digest.startswith(prefix)
        ]
        found = [node for node in known if node.name == name]
        if not found and not prefix and not kind and _HEX.fullmatch(name):
            found = [node for node in known if node.digest.startswith(name)]
        if not found and not prefix and kind in ("", "checkpoint"):
            steps = [node for node in known if node.kind == "checkpoint" and node.name.rpartition("/")[0] == name]
            found = sorted(steps, key=lambda node: int(node.facts.get("step", 0)))[-1:]
        if len(found) > 1 and not prefix:
            heads = [node for node in found if node.kind == "dataset" and self.heads.get(node.name) == node.digest]
            found = heads or found
        if len(found) > 1 and not kind:
            first = min(NODE_KINDS.index(node.kind) for node in found)
            found = [node for node in found if NODE_KINDS.index(node.kind) == first]
        return sorted(found, key=_order)

    def unknown(self, text: str, tried: str = "") -> AltDiffusionError:
        """Return the error for a reference that names nothing in this lake, with the nearest names."""
        names = sorted(
            {node.label for node in self.nodes.values()}
            | {node.name for node in self.nodes.values()}
            | {str(node.facts["run"]) for node in self.nodes.values() if "run" in node.facts}
        )
        plain = text.rpartition(":")[2].partition("@")[0]
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.5) + difflib.get_close_matches(plain, names, n=3)
        kind = text.rpartition(":")[0]
        meant = [node for node in self.nodes.values() if node.kind == kind] or list(self.nodes.values())
        shown = list(dict.fromkeys(near))[:4] or [node.label for node in sorted(meant, key=_order)[:4]]
        return AltDiffusionError(
            f"reference {text!r}",
            f"names nothing in the lake {self.lake_uri}{tried}",
            f"nearest names: {', '.join(shown)}" if shown else "the lake is empty: run a job first, or check --lake",
        )

    def ambiguous(self, text: str, matches: Sequence[str]) -> AltDiffusionError:
        """Return the error for a reference that matches several things."""
        more = f" and {len(matches) - 6} more" if len(matches) > 6 else ""
        return AltDiffusionError(
            f"reference {text!r}",
            f"is ambiguous in the lake {self.lake_uri}",
            f"write one of: {', '.join(matches[:6])}{more}",
        )


def _order(node: Node) -> tuple[Any, ...]:
    return (NODE_KINDS.index(node.kind), node.name, node.digest)


def _named_only(ref: str, exports: Mapping[str, str] | None = None) -> Node:
    """Return a node for a reference whose manifest the lake does not hold; a source never has a manifest.

    A model with the digest of an export is that export, used as a model folder.
    """
    try:
        parsed = Ref.parse(ref)
    except AltDiffusionError:
        return Node(ref=ref, kind="source", name=ref, digest="", missing=True)
    missing = parsed.kind in ("dataset", "checkpoint")
    same = (exports or {}).get(parsed.digest) if parsed.kind == "model" else None
    return Node(
        ref=ref,
        kind=parsed.kind,
        name=parsed.name,
        digest=parsed.digest,
        parents=(same,) if same else (),
        missing=missing,
    )


def scan(lake_uri: str) -> Graph:
    """Read every manifest of a lake; one that is damaged is left out, and named in `Graph.damaged`.

    Raises:
        AltDiffusionError: there is no such lake, or a manifest states that a thing was made from itself.
    """
    lake = lake_uri.rstrip("/")
    if not files.exists(lake):
        raise AltDiffusionError(
            f"lake {lake_uri}", "does not exist", "give the address that the jobs write to (--lake)"
        )
    nodes: list[Node] = []
    heads: dict[str, str] = {}
    damaged: list[AltDiffusionError] = []
    for name in Lake(lake).names():
        with _noting(damaged):
            dataset = Dataset(lake, name)
            versions = read_summaries(dataset)
            nodes += [_version_node(dataset, summary) for summary in versions.by_digest.values()]
            damaged += versions.damaged
            head = dataset.head_digest()
            if head is not None:
                heads[name] = head
    for folder, depth, file, describe, build in _SHELVES:
        with _noting(damaged):
            root = files.within(lake, folder)
            shelf = Shelf(
                lake_uri=lake, name=folder, root_uri=root, depth=depth, file=file,
                describe=describe, build=functools.partial(build, root),
            )  # fmt: skip
            found = read_shelf(shelf)
            nodes += found.things.values()
            damaged += found.damaged
    graph = Graph(lake, nodes, heads, damaged)
    _refuse_cycle(graph)
    return graph


@contextlib.contextmanager
def _noting(damaged: list[AltDiffusionError]) -> Iterator[None]:
    try:
        yield
    except AltDiffusionError as error:
        damaged.append(error)


def _refuse_cycle(graph: Graph) -> None:
    """Refuse a lake in which a thing was made from itself.

    Digests exclude that, but a lineage.json that was written by hand may state it.
    """
    open_, done = "open", "done"
    state: dict[str, str] = {}
    for start in graph.nodes:
        waiting = [start]
        while waiting:
            ref = waiting[-1]
            if ref not in state:
                state[ref] = open_
                for parent in graph.parents(ref):
                    if state.get(parent) == open_:
                        raise AltDiffusionError(
                            f"{graph.nodes[ref].label} in the lake {graph.lake_uri}",
                            f"was made from itself, through {graph.nodes[parent].label}",
                            f"its manifest was forged or damaged: remove {graph.nodes[ref].uri or ref}",
                        )
                    if parent not in state:
                        waiting.append(parent)
            else:
                state[ref] = done
                waiting.pop()


def read_version(lake_uri: str, name: str, digest: str) -> Node:
    """Return the node of a dataset version."""
    dataset = Dataset(lake_uri, name)
    version = dataset.open(digest)
    manifest = version.manifest
    return _version_node(dataset, summary_of(version.ref.digest, manifest))


def _version_node(dataset: Dataset, summary: Summary) -> Node:
    return Node(
        ref=str(summary.ref),
        kind="dataset",
        name=summary.name,
        digest=summary.digest,
        parents=summary.parents,
        uri=files.join(dataset.folder_uri, "versions", summary.digest),
        facts=version_facts(summary),
    )


def version_facts(summary: Summary) -> dict[str, Any]:
    """Return the facts of a dataset version's node."""
    return {
        "holds": summary.kind,
        "rows": summary.rows,
        "rows_by_language": dict(summary.rows_by_language),
        "rejects_by_reason": dict(summary.rejects_by_reason),
        "fingerprint": summary.fingerprint,
        "config": dict(summary.config),
        "schema": list(summary.schema),
        "code_version": summary.code_version,
    }


def read_checkpoint(folder_uri: str) -> Node | None:
    """Return the node of a checkpoint folder; None while it is not complete.

    Raises:
        AltDiffusionError: COMPLETE.json is damaged, or was changed by hand.
    """
    return _read_folder(folder_uri, "COMPLETE.json", 2, _describe_checkpoint, _checkpoint_node)


def read_export(folder_uri: str) -> Node | None:
    """Return the node of an exported model folder; None if it has no lineage.json."""
    return _read_folder(folder_uri, "lineage.json", 2, _describe_folder, _export_node)


def read_model(folder_uri: str) -> Node | None:
    """Return the node of a model folder; None if it has no lineage.json (then only parents name it)."""
    return _read_folder(folder_uri, "lineage.json", 1, _describe_folder, _model_node)


Parts = tuple[str, ...]
Describe = Callable[[str, Parts, bytes], Mapping[str, Any]]
Build = Callable[[str, Parts, Document], Node]


def _read_folder(folder_uri: str, file: str, depth: int, describe: Describe, build: Build) -> Node | None:
    uri = files.within(folder_uri, file)
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError:
        return None
    root, *parts = folder_uri.rstrip("/").rsplit("/", depth)
    return build(root, tuple(parts), Document(uri, describe(uri, tuple(parts), data)))


def _describe_checkpoint(uri: str, parts: Parts, data: bytes) -> Mapping[str, Any]:
    complete = parse_document(uri, data)
    check_seal(complete)
    listing = complete.object("files")
    return {
        "digest": complete.digest("digest"),
        "parents": list(complete.refs("parents")),
        "step": complete.count("step"),
        "stage": complete.text("stage"),
        "fingerprint": complete.text("config_fingerprint"),
        "bytes": sum(listing.object(name).count("bytes") for name in listing.value),
    }


def _checkpoint_node(root_uri: str, parts: Parts, summary: Document) -> Node:
    ref = Ref("checkpoint", "/".join(parts), summary.digest("digest"))
    return Node(
        ref=str(ref),
        kind="checkpoint",
        name=ref.name,
        digest=ref.digest,
        parents=summary.refs("parents"),
        uri=files.join(root_uri, *parts),
        facts={
            "run": parts[0],
            "step": summary.count("step"),
            "stage": summary.text("stage"),
            "fingerprint": summary.text("fingerprint"),
            "bytes": summary.count("bytes"),
        },
    )


def _describe_folder(uri: str, parts: Parts, data: bytes) -> Mapping[str, Any]:
    document = parse_document(uri, data)
    check_checksum(document)
    value = document.value
    if value.get("parents") is not None:
        parents = document.texts("parents")
    else:
        parents = (document.text("checkpoint"),) if "checkpoint" in value else ()
    facts: dict[str, Any] = {key: document.text(key) for key in ("stage", "run", "weights") if key in value}
    if "step" in value:
        facts["step"] = document.count("step")
    return {"digest": digest_of_lineage(document), "parents": list(parents), "sealed": is_sealed(document), **facts}


def _export_node(root_uri: str, parts: Parts, summary: Document) -> Node:
    return _folder_node("export", root_uri, parts, summary)


def _model_node(root_uri: str, parts: Parts, summary: Document) -> Node:
    return _folder_node("model", root_uri, parts, summary)


def _folder_node(kind: str, root_uri: str, parts: Parts, summary: Document) -> Node:
    digest, name = summary.digest("digest"), "/".join(parts)
    facts: dict[str, Any] = {key: summary.text(key) for key in ("stage", "run", "weights") if key in summary.value}
    if "step" in summary.value:
        facts["step"] = summary.count("step")
    if not summary.flag("sealed"):
        facts["unsealed"] = True  # written by an earlier version: nothing shows whether its parents were changed
    return Node(
        ref=f"{kind}:{name}@{digest}",
        kind=kind,
        name=name,
        digest=digest,
        parents=summary.texts("parents"),
        uri=files.join(root_uri, *parts),
        facts=facts,
    )


_SHELVES: tuple[tuple[str, int, str, Describe, Build], ...] = (
    ("checkpoints", 2, "COMPLETE.json", _describe_checkpoint, _checkpoint_node),
    ("exports", 2, "lineage.json", _describe_folder, _export_node),
    ("models", 1, "lineage.json", _describe_folder, _model_node),
)
"""Folder, levels of folders below it, the file that completes a thing, and how it is read."""


def read_node(lake_uri: str, ref: Ref | str) -> Node:
    """Return the node of a full reference, without scanning the lake; if the lake lacks it, the node is only named."""
    lake = lake_uri.rstrip("/")
    try:
        parsed = ref if isinstance(ref, Ref) else Ref.parse(ref)
    except AltDiffusionError:
        return _named_only(str(ref))
    node: Node | None = None
    if parsed.kind == "dataset":
        uri = files.within(lake, "datasets", parsed.name, "versions", parsed.digest, "manifest.json")
        with contextlib.suppress(FileNotFoundError):  # read at once: to ask first whether it is there is a request more
            raw = files.read_bytes(uri)
            dataset = Dataset(lake, parsed.name)
            node = _version_node(dataset, summary_of(parsed.digest, dataset.manifest_of(uri, parsed.digest, raw)))
    elif parsed.kind == "checkpoint":
        node = read_checkpoint(files.within(lake, "checkpoints", parsed.name))
    elif parsed.kind == "model":
        node = read_model(files.within(lake, "models", parsed.name))
    return node if node is not None and node.digest == parsed.digest else _named_only(str(parsed))


class NodeReader:
    """Reads nodes of a lake, each once: what a digest names does not change. One that is missing is looked for again.

    Memory grows with the nodes that were read: a lineage has some dozens.
    """

    def __init__(self, lake_uri: str) -> None:
        self._lake = lake_uri.rstrip("/")
        self._read: dict[str, Node] = {}

    def node(self, ref: Ref | str) -> Node:
        """Return the node of a full reference; if the lake lacks it, the node is only named."""
        known = self._read.get(str(ref))
        if known is not None:
            return known
        node = read_node(self._lake, ref)
        if not node.missing:
            self._read[str(ref)] = node
        return node

    def ancestors(self, parents: Iterable[Ref | str]) -> Graph:
        """Return the graph of `parents` and everything that they were made from, reading only these manifests."""
        nodes: dict[str, Node] = {}
        waiting = [str(parent) for parent in parents]
        while waiting:
            ref = waiting.pop()
            if ref not in nodes:
                nodes[ref] = self.node(ref)
                waiting.extend(nodes[ref].parents)
        return Graph(self._lake, nodes.values(), {})


def ancestors(lake_uri: str, parents: Iterable[Ref | str]) -> Graph:
    """Return the graph of `parents` and everything that they were made from, reading only these manifests."""
    return NodeReader(lake_uri).ancestors(parents)
