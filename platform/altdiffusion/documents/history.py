"""How a dataset version came about: every version that it was made from, the first one first, with what was dropped."""

from __future__ import annotations

import dataclasses
import functools
import graphlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.rejects import explain
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import in_order
from altdiffusion.lineage.graph import Graph, Node, ancestors, version_facts
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import MADE_BY, Lake, Version
from altdiffusion.storage.documents import optional_document
from altdiffusion.storage.erased import read_erased
from altdiffusion.storage.summaries import summary_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A dataset version and the pipeline step that made it."""

    node: Node
    step: str
    """Name of the pipeline step; the dataset's name where the lake keeps none."""

    @property
    def rows(self) -> int:
        return int(self.node.facts["rows"])

    @property
    def rejects(self) -> Mapping[str, int]:
        """The rows that the step read and dropped, by reason."""
        rejects: Mapping[str, int] = self.node.facts["rejects_by_reason"]
        return rejects

    @property
    def rows_in(self) -> int:
        """The rows that the step read: every one is accepted or counted as a reject."""
        return self.rows + sum(self.rejects.values())

    @property
    def kind(self) -> str:
        return str(self.node.facts["holds"])

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.node.facts["config"]
        return config

    @property
    def settings(self) -> str:
        """The step's config as JSON of one line."""
        return json.dumps(self.config, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class History:
    """Everything that some things were made from."""

    graph: Graph
    made: tuple[Made, ...]
    """The dataset versions that the lake holds or that were erased from it, parents first."""

    def nodes(self, *kinds: str) -> list[Node]:
        """Return the nodes of these kinds, by name."""
        return sorted((node for node in self.graph.nodes.values() if node.kind in kinds), key=lambda node: node.ref)

    @property
    def latest(self) -> list[Made]:
        """The versions that no later one of their dataset was made from: a later one counts the rejects again."""
        earlier = {parent for made in self.made for parent in made.node.parents if _name(parent) == made.node.name}
        return [made for made in self.made if made.node.ref not in earlier]

    @property
    def absent(self) -> list[Node]:
        """The dataset versions that a manifest names and of which the lake holds nothing."""
        return [node for node in self.nodes("dataset") if not node.facts]


def _name(ref: str) -> str:
    return Ref.parse(ref).name


def history_of(lake: Lake, refs: Sequence[Ref | str]) -> History:
    """Return everything that `refs` were made from, and themselves; only these manifests are read.

    Raises:
        AltDiffusionError: a manifest on the way is damaged.
    """
    return _history(_ancestors(lake, refs))


def _history(graph: Graph) -> History:
    made = [
        Made(node=node, step=step_name(node))
        for node in in_order_of_making(graph)
        if node.kind == "dataset" and node.facts
    ]
    return History(graph=graph, made=tuple(made))


def data_history(lake: Lake, version: Version) -> History:
    """Return what the rows of a version were made from.

    A model or checkpoint that drew images is named, but what it was trained on is its own history, not the images'.

    Raises:
        AltDiffusionError: a manifest on the way is damaged.
    """
    graph = history_of(lake, [version.ref]).graph
    nodes: dict[str, Node] = {}
    waiting = [str(version.ref)]
    while waiting:
        node = graph.nodes[waiting.pop()]
        if node.kind in ("checkpoint", "model", "export"):
            node = dataclasses.replace(node, parents=())
        if node.ref not in nodes:
            nodes[node.ref] = node
            waiting.extend(node.parents)
    return _history(Graph(lake.uri, nodes.values(), {}))


def _ancestors(lake: Lake, refs: Sequence[Ref | str]) -> Graph:
    """Return the graph of `refs` and what they were made from, with what is left of versions that were erased."""
    graph = ancestors(lake.uri, refs)
    erased = [node for node in map(functools.partial(_kept, lake), graph.nodes.values()) if node is not None]
    if not erased:
        return graph
    above = _ancestors(lake, [parent for node in erased for parent in node.parents])
    return Graph(lake.uri, [*above.nodes.values(), *graph.nodes.values(), *erased], {})


def _kept(lake: Lake, node: Node) -> Node | None:
    """Return the node of an erased version, from the counts that erasing keeps; None for any other node."""
    if node.kind != "dataset" or not node.missing:
        return None
    kept = read_erased(lake, Ref.parse(node.ref))
    if kept is None:  # it stays a node that is only named
        return None
    facts = version_facts(summary_of(node.digest, kept.manifest))
    return dataclasses.replace(node, parents=kept.manifest.parents, facts=facts)


def in_order_of_making(graph: Graph) -> list[Node]:
    """Return all nodes, each one after its parents, in an order that depends on their references alone.

    Raises:
        AltDiffusionError: a lineage.json states that a thing was made from itself.
    """
    sorter = graphlib.TopologicalSorter({ref: sorted(graph.parents(ref)) for ref in sorted(graph.nodes)})
    try:
        return [graph.nodes[ref] for ref in sorter.static_order()]
    except graphlib.CycleError as error:
        raise AltDiffusionError(
            f"{error.args[1][0]} in the lake {graph.lake_uri}",
            "was made from itself",
            "a lineage.json was forged or damaged: `altdiffusion lineage up` names it",
        ) from error


def step_name(node: Node) -> str:
    """Return the name of the pipeline step that made a dataset version; the dataset's name where none was kept.

    Raises:
        AltDiffusionError: the file that keeps the name is damaged.
    """
    document = optional_document(files.within(node.uri, MADE_BY)) if node.uri else None
    return node.name if document is None else document.name("pipeline_step")


def reasons(counts: Mapping[str, int]) -> list[str]:
    """Return one line per reject reason, the most frequent first: the name, its rows, its sentence."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        f"{name}: {rows:,} row{'' if rows == 1 else 's'}" + (f" ({explain(name)})" if explain(name) else "")
        for name, rows in ordered
    ]


def languages_of(version: Version) -> list[str]:
    """Return the codes of the languages with rows, the platform's own order first."""
    return in_order(sorted(code for code, rows in version.manifest.rows_by_language.items() if rows))
