"""Models of the hub that a config names: each at one commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from altdiffusion.constraints import Invalid
from altdiffusion.diffusion.hub import HubId, is_hub_id


def unpinned(config: Any, *names: str) -> Iterator[Invalid]:
    """Yield the fields that name a model of the hub without its commit."""
    for name in names:
        uri = getattr(config, name)
        if uri is not None and is_hub_id(uri):
            try:
                HubId.parse(uri)
            except ValueError as error:
                problem, _, remedy = str(error).partition("; ")
                yield Invalid(name, problem, remedy)
