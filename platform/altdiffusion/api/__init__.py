"""The Python API: `Lake(uri).version(name)` with readers for other programs, and `generate`.

    import altdiffusion
    images = altdiffusion.Lake("lake").version("images")

Torch, Ray, DuckDB and diffusers are imported only by what needs them.
"""

from __future__ import annotations

from altdiffusion.api.drawing import Drawn, generate
from altdiffusion.api.versions import Lake, Version

__all__ = ["Drawn", "Lake", "Version", "generate"]
