"""Free space where Ray, downloads and caches write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping

from altdiffusion.doctor.line import FAIL, OK, WARN, Line

GIB = 2**30
LEAST_GIB, ENOUGH_GIB = 1.0, 20.0


def folders(spill: str | None = None) -> dict[str, str]:
    """Return the folders that are written to, by what is in them."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    found = {"temporary": tempfile.gettempdir(), "cache": cache}
    if os.environ.get("RAY_TMPDIR"):
        found["ray"] = os.environ["RAY_TMPDIR"]
    return found | ({"spill": spill} if spill else {})


def check_disks(
    spill: str | None = None, least_gib: float = LEAST_GIB, enough_gib: float = ENOUGH_GIB
) -> Iterator[Line]:
    """Check that each folder can be written to and has room.

    Args:
        spill: folder of Ray's spilled objects (`--object-spilling-directory`), if it has one of its own.
        least_gib: GiB free below which a line fails.
        enough_gib: GiB free below which it warns.
    """
    yield from _lines(folders(spill), least_gib, enough_gib)


def _lines(named: Mapping[str, str], least_gib: float, enough_gib: float) -> Iterator[Line]:
    for what, folder in named.items():
        there = folder
        while not os.path.exists(there):  # a cache that nothing has been put in yet
            there = os.path.dirname(os.path.abspath(there))
        free = shutil.disk_usage(there).free / GIB
        found = f"{folder}: {free:,.1f} GiB free"
        variable = {"temporary": "TMPDIR", "cache": "XDG_CACHE_HOME", "ray": "RAY_TMPDIR", "spill": "--spill"}[what]
        if what == "spill" and there != folder:
            yield Line(
                FAIL, f"disk {what}", f"{folder} is missing", f"make it (mkdir -p {folder}; chmod 1777 {folder})"
            )
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Line(FAIL, f"disk {what}", f"{folder} cannot be written", f"name another folder by {variable}")
        elif free < least_gib:
            yield Line(FAIL, f"disk {what}", found, f"free space, or name a larger disk by {variable}")
        elif free < enough_gib:
            yield Line(WARN, f"disk {what}", found, f"free space, or name a larger disk by {variable}")
        else:
            yield Line(OK, f"disk {what}", found)
