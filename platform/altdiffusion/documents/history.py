"""How a dataset version came about: every version that it was made from, the first one first, with what was dropped."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.rejects import explain
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import in_order
from altdiffusion.lineage.graph import Graph, Node, ancestors
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version


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
    """The dataset versions that the lake holds, parents first."""

    def nodes(self, *kinds: str) -> list[Node]:
        """Return the nodes of these kinds, by name."""
        return sorted((node for node in self.graph.nodes.values() if node.kind in kinds), key=lambda node: node.ref)

    @property
    def absent(self) -> list[Node]:
        """The dataset versions that a manifest names and the lake no longer holds."""
        return [node for node in self.nodes("dataset") if node.missing]


def history_of(lake: Lake, refs: Sequence[Ref | str]) -> History:
    """Return everything that `refs` were made from, and themselves; only these manifests are read.

    Raises:
        AltDiffusionError: a manifest on the way is damaged.
    """
    graph = ancestors(lake.uri, refs)
    made = [
        Made(node=node, step=step_name(lake, node))
        for node in in_order_of_making(graph)
        if node.kind == "dataset" and not node.missing
    ]
    return History(graph=graph, made=tuple(made))


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


def step_name(lake: Lake, node: Node) -> str:
    """Return the name of the pipeline step that made a dataset version; the dataset's name where none was kept."""
    try:
        return lake.version(node.ref).made_by or node.name
    except AltDiffusionError:  # the name is for people: a version without a readable one has its dataset's
        return node.name


def reasons(counts: Mapping[str, int]) -> list[str]:
    """Return one line per reject reason, the most frequent first: the name, its rows, its sentence."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{name}: {rows:,} rows" + (f" ({explain(name)})" if explain(name) else "") for name, rows in ordered]


def languages_of(version: Version) -> list[str]:
    """Return the codes of the languages with rows, the platform's own order first."""
    return in_order(sorted(code for code, rows in version.manifest.rows_by_language.items() if rows))
