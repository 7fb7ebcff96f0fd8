"""The takedown of a whole lake: the head of each dataset that holds the rows, sources first.

The plan is a function of the lake and of where the rows are, and each of its steps of the version before it. So a
takedown that was killed in the middle and is run again ends with the same versions: the finished datasets hold none of
the rows, and the others are as before.
"""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.holdings import Holdings


@dataclass(frozen=True, kw_only=True)
class Step:
    """The takedown of one dataset."""

    before: Version
    rows: int
    shards: int
    """Number of shards that hold such rows and are rewritten."""
    links: int
    """Number of rejected rows whose link is erased."""

    def __str__(self) -> str:
        return (
            f"{self.before.ref.short}: {self.rows:,} of {self.before.rows:,} rows removed, links of {self.links:,} "
            f"rejected rows erased; {self.shards:,} of {len(self.before.shards):,} shards rewritten"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a takedown does to the datasets of a lake."""

    steps: tuple[Step, ...]
    unreadable: tuple[AltDiffusionError, ...]
    """What keeps other datasets from being searched or changed."""


def plan_of(graph: Graph, holdings: Holdings) -> Plan:
    """Return what to do to the head of each dataset, each after those that it was made from."""
    versions = {str(version.ref): version for version in holdings.versions}
    steps: list[Step] = []
    unreadable = [*holdings.damaged, *graph.damaged]
    for ref in graph.parents_first():
        node = graph.nodes[ref]
        if node.kind != "dataset" or graph.heads.get(node.name) != node.digest or ref not in versions:
            continue
        try:
            accepted, rejected = holdings.of(versions[ref]), holdings.of(versions[ref], "rejects")
        except AltDiffusionError as error:
            unreadable.append(error)
            continue
        if accepted or rejected:
            steps.append(
                Step(
                    before=versions[ref],
                    rows=sum(len(rows) for _, rows in accepted),
                    shards=len(accepted),
                    links=sum(len(rows) for _, rows in rejected),
                )
            )
    distinct = {str(error): error for error in unreadable}
    return Plan(steps=tuple(steps), unreadable=tuple(distinct.values()))
