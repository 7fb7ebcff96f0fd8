"""Models of the hub that a config names: each at one commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from altdiffusion.constraints import Invalid
from altdiffusion.diffusion import hub


def unpinned(config: Any, *names: str) -> Iterator[Invalid]:
    """Yield the fields that name a model of the hub without its commit."""
    for name in names:
        wrong = hub.unpinned(getattr(config, name))
        if wrong is not None:
            yield Invalid(name, *wrong)
