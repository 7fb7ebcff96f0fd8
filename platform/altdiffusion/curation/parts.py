"""The files that a glob names; a folder that Spark or Dask wrote under the name of a file counts as its parts.

Such a folder holds part files as well as notes of the writer (`_SUCCESS`, `_committed_...`, `.part-....crc`). The
notes begin with `_` or `.` and are not parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.hub_data import check_pinned
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files


@dataclass(frozen=True, kw_only=True, order=True)
class Found:
    """A file that a glob names."""

    path: str
    folders: str = ""
    """The folders `column=value/...` between the folder that the glob names and the file."""


def find_parts(uri: str, what: str) -> tuple[Any, list[str]]:
    """Return the file system of a glob and the paths of its files, in the order of their names.

    Raises:
        AltDiffusionError: as for `find_partitioned`, or a folder is partitioned by a column.
    """
    fs, found = find_partitioned(uri, what)
    for one in found:
        if one.folders:
            raise AltDiffusionError(
                f"{what}, folder {fs.unstrip_protocol(one.path)}",
                f"is partitioned by {one.folders.partition('=')[0]!r}, whose values are in the names of folders and "
                "would be lost",
                "write the column into the files (without `partitionBy`), or name the files themselves in the glob",
            )
    return fs, [one.path for one in found]


def find_partitioned(uri: str, what: str) -> tuple[Any, list[Found]]:
    """Return the file system of a glob and its files, in the order of their names, with the columns of their folders.

    Args:
        uri: on any fsspec file system.
        what: what errors call it.

    Raises:
        AltDiffusionError: nothing matches; a folder is empty, still being written, or holds folders of another kind; a
            data set of the hub is not pinned to a commit.
    """
    check_pinned(uri)
    fs, pattern = files.filesystem(uri)
    with files.naming(uri, "listing"):
        return fs, _found(fs, pattern, what, uri)


def _found(fs: Any, pattern: str, what: str, uri: str) -> list[Found]:
    fs.invalidate_cache()
    named = pattern.rsplit("/", 1)[-1][:1]  # a glob that asks for hidden files gets them
    found: list[Found] = []
    for path in sorted(str(path) for path in fs.glob(pattern)):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name[:1] in ("_", ".") and name[:1] != named:
            continue
        found += _inside(fs, path.rstrip("/"), what) if fs.isdir(path) else [Found(path=path)]
    if not found:
        raise AltDiffusionError(f"{what} ({uri})", "matches no file", "check the glob in the config")
    return found


def _inside(fs: Any, folder: str, what: str, folders: str = "") -> list[Found]:
    entries = {str(entry["name"]).rstrip("/"): entry["type"] for entry in fs.ls(folder, detail=True)}
    names = {path.rsplit("/", 1)[-1]: path for path in entries if path != folder}
    shown = f"{what}, folder {fs.unstrip_protocol(folder)}"
    if "_temporary" in names:
        raise AltDiffusionError(
            shown,
            "is still being written, or its writer failed (it holds `_temporary`)",
            "write it again, and to its end",
        )
    parts = {name: path for name, path in sorted(names.items()) if name[:1] not in ("_", ".")}
    found: list[Found] = []
    for name, path in parts.items():
        if entries[path] != "directory":
            found.append(Found(path=path, folders=folders))
        elif re.fullmatch(r"[^=]+=.*", name):
            found += _inside(fs, path, what, f"{folders}/{name}" if folders else name)
        else:
            raise AltDiffusionError(
                shown, f"holds a folder, {name!r}, that is not column=value", "name the files themselves in the glob"
            )
    if not found:
        raise AltDiffusionError(shown, "holds no part", "write it again, or leave it out of the glob")
    return found
