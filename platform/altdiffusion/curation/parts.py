"""The files that a glob names; a folder that Spark or Dask wrote under the name of a file counts as its parts.

Such a folder holds part files as well as notes of the writer (`_SUCCESS`, `_committed_...`, `.part-....crc`). The
notes begin with `_` or `.` and are not parts.
"""

from __future__ import annotations

from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files


def find_parts(uri: str, what: str) -> tuple[Any, list[str]]:
    """Return the file system of a glob and the paths of its files, in the order of their names.

    Args:
        uri: on any fsspec file system.
        what: what errors call it.

    Raises:
        AltDiffusionError: nothing matches; a folder is empty, still being written, or partitioned by a column.
    """
    fs, pattern = files.filesystem(uri)
    fs.invalidate_cache()
    named = pattern.rsplit("/", 1)[-1][:1]  # a glob that asks for hidden files gets them
    found: list[str] = []
    for path in sorted(str(path) for path in fs.glob(pattern)):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name[:1] in ("_", ".") and name[:1] != named:
            continue
        found += _inside(fs, path.rstrip("/"), what) if fs.isdir(path) else [path]
    if not found:
        raise AltDiffusionError(f"{what} ({uri})", "matches no file", "check the glob in the config")
    return fs, found


def _inside(fs: Any, folder: str, what: str) -> list[str]:
    entries = {str(entry["name"]).rstrip("/"): entry["type"] for entry in fs.ls(folder, detail=True)}
    names = {path.rsplit("/", 1)[-1]: path for path in entries if path != folder}
    shown = f"{what}, folder {fs.unstrip_protocol(folder)}"
    if "_temporary" in names:
        raise AltDiffusionError(
            shown,
            "is still being written, or its writer failed (it holds `_temporary`)",
            "write it again, and to its end",
        )
    parts = {name: path for name, path in names.items() if name[:1] not in ("_", ".")}
    folders = sorted(name for name, path in parts.items() if entries[path] == "directory")
    if folders:
        column, is_column, _ = folders[0].partition("=")
        raise AltDiffusionError(
            shown,
            f"is partitioned by {column!r}, whose values are in the names of folders and would be lost"
            if is_column
            else f"holds a folder, {folders[0]!r}",
            "write the column into the files (without `partitionBy`), or name the files themselves in the glob",
        )
    if not parts:
        raise AltDiffusionError(shown, "holds no part", "write it again, or leave it out of the glob")
    return sorted(parts.values())
