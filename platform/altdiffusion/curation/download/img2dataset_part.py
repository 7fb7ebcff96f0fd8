"""Single modules of img2dataset, each in a copy of our own.

`import img2dataset` brings torch, Ray, wandb, scipy and webdataset along: 3 s and 330 MB for every worker and every
decoder. One of its modules alone is light. And a copy may be given other functions than the original has: nothing
that another program in this process imports as img2dataset is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

from altdiffusion.errors import AltDiffusionError

_PACKAGE = "altdiffusion_img2dataset"


def part(name: str) -> types.ModuleType:
    """The module `img2dataset.<name>`, loaded once a process under a package name of ours.

    Raises:
        AltDiffusionError: img2dataset is not installed, or has no such module.
    """
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec("img2dataset")
        package = types.ModuleType(_PACKAGE)
        package.__path__ = list(found.submodule_search_locations or ()) if found is not None else []
        sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        raise AltDiffusionError(
            f"img2dataset's {name}", f"cannot be loaded ({error})", "install the pinned version 1.47.0"
        ) from error
