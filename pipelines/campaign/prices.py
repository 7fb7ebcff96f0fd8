"""Prices: what a node costs per hour and holds, what storage and egress cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from altdiffusion.config import load_config
from altdiffusion.constraints import Checked, Invalid, at_least, not_empty, positive
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.capacity import fits, named, room
from altdiffusion.execution.units import Resources

LIST = Path(__file__).with_name("prices.yaml")
"""The list that is used where none is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePrice(Checked):
    """One kind of node."""

    instance: str
    """Name of the provider's machine."""
    cpus: Annotated[float, at_least(0)]
    """CPUs that Ray counts for workers."""
    gpus: Annotated[float, at_least(0)] = 0.0
    memory_gib: Annotated[float, at_least(0)] = 0.0
    """Memory that Ray counts for workers."""
    custom: dict[str, float] = field(default_factory=dict)
    """Custom resources of the node."""
    network_gbit_s: Annotated[float, at_least(0)] = 0.0
    """Network between the nodes; 0 takes no time for it."""
    per_hour: Annotated[float, at_least(0)]

    @property
    def has(self) -> dict[str, float]:
        """What the node has, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * 2**30, **self.custom}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier(Checked):
    """A price per gigabyte up to an amount."""

    up_to_tb: Annotated[float | None, positive("null is for the last one")] = None
    per_gb: Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PricesConfig(Checked):
    """A list of prices."""

    date: Annotated[str, not_empty('give the day of the prices, as in "2026-09-25"')]
    source: Annotated[str, not_empty("give where the prices are from")]
    currency: str = "$"
    head: str
    """Which of `nodes` the head is."""
    nodes: dict[str, NodePrice]
    storage: tuple[Tier, ...]
    """Per gigabyte and month."""
    egress: tuple[Tier, ...]
    """Per gigabyte that leaves the region."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.head not in self.nodes:
            yield Invalid("head", "is not one of nodes", f"name one of {', '.join(self.nodes) or 'them'}")
        for key, tiers in (("storage", self.storage), ("egress", self.egress)):
            limits = [tier.up_to_tb for tier in tiers]
            closed = [limit for limit in limits[:-1] if limit is not None]
            rising = all(one < other for one, other in itertools.pairwise(closed))
            if not limits or limits[-1] is not None or len(closed) != len(limits) - 1 or not rising:
                yield Invalid(key, "must be tiers of rising up_to_tb, the last one without", "end with {per_gb: 0.02}")

    def node_for(self, resources: Resources) -> str:
        """Return the cheapest kind of node per worker on which a worker fits.

        Raises:
            AltDiffusionError: it fits on none.
        """
        fitting = [name for name, node in self.nodes.items() if fits(resources, [node.has])]
        if not fitting:
            raise AltDiffusionError(
                f"a worker with {named(resources)}",
                f"fits on no node of the price list ({', '.join(self.nodes)})",
                "add a node that it fits on to `nodes` of a file for --prices, or ask for less in the config",
            )
        return min(fitting, key=lambda name: self.nodes[name].per_hour / room(resources, [self.nodes[name].has]))


def load_prices(path: str | None) -> PricesConfig:
    """Return the prices of a file, or the list that comes with the package."""
    return load_config(PricesConfig, path or str(LIST))


def tiered(tiers: Sequence[Tier], terabytes: float) -> float:
    """Return what an amount costs, each tier at its own price."""
    cost = below = 0.0
    for tier in tiers:
        top = terabytes if tier.up_to_tb is None else min(terabytes, tier.up_to_tb)
        cost += max(0.0, top - below) * 1000 * tier.per_gb
        below = max(below, top)
    return cost
