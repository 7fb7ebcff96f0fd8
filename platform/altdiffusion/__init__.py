"""AltDiffusion Platform: curate, encode, train, generate and evaluate an 18-language text-to-image model on Ray.

`Lake`, `Version`, `Drawn` and `generate` are those of `altdiffusion.api`, which is imported when one of them is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_API = ("Drawn", "Lake", "Version", "generate")


def __getattr__(name: str) -> Any:
    """Return a name of the Python API."""
    if name in _API:
        # By name, because every part of the package imports this module: it may import none of them.
        return getattr(importlib.import_module("altdiffusion.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that are here, those of the API included."""
    return sorted([*globals(), *_API])
