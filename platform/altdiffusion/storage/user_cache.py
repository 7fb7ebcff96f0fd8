"""The user's cache folder: local copies of what is elsewhere, which may be removed at any time."""

from __future__ import annotations

import os


def user_cache(*names: str) -> str:
    """Return a path in the user's cache folder: $XDG_CACHE_HOME/altdiffusion, or ~/.cache/altdiffusion."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "altdiffusion", *names)
