"""Copies of images and artifacts that a job's journal keeps, so that MLflow can be filled from the lake again.

    <tracking folder>/files/<sha256>.img          an image
    <tracking folder>/files/<number>/<basename>   an artifact: a file, or a folder

A journal in a shared lake is untrusted input: its lines name files that are copied into MLflow. So a line
is valid only if it names such a copy, below its own journal and without a symbolic link in the path.
"""

from __future__ import annotations

import os
import shutil
import time

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

FOLDER = "files"


class Kept:
    """The copies of one journal.

    Args:
        folder: local path of the journal's folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(folder)
        self._root = os.path.join(self._folder, FOLDER)

    def keep(self, data: bytes) -> str:
        """Keep the bytes of an image and return the name for the journal's line."""
        name = f"{FOLDER}/{files.sha256_hex(data)}.img"
        uri = files.within(self._folder, name)
        if not files.exists(uri):
            files.write_atomic(uri, data)
        return name

    def keep_copy(self, path: str) -> str:
        """Keep a copy of a file (any URI) or of a local folder and return the name for the journal's line.

        Raises:
            OSError, AltDiffusionError: the file cannot be read, or the copy cannot be written.
        """
        name = f"{FOLDER}/{time.time_ns()}/{os.path.basename(path.rstrip('/'))}"
        copy = files.within(self._folder, name)
        os.makedirs(os.path.dirname(copy))
        if os.path.isdir(path):
            shutil.copytree(path, copy)  # which copies the targets of links, so the copy holds no links
        else:
            files.write_atomic(copy, files.read_bytes(path))
        return name

    def find(self, name: object) -> str | None:
        """Return the path of a copy that a journal's line names; None where it is gone.

        Args:
            name: the name that `keep` returned, or the absolute path that earlier versions wrote.

        Raises:
            AltDiffusionError: the line names anything else.
        """
        if not isinstance(name, str) or "\0" in name:
            raise self._forged(name, "does not name a file")
        path = os.path.join(self._folder, name)
        parts = os.path.relpath(path, self._root).split("/")
        if path != os.path.normpath(path) or not 1 <= len(parts) <= 2 or parts[0] in ("..", "."):
            raise self._forged(name, f"does not name a copy in {self._root}")
        for place in (self._root, os.path.join(self._root, parts[0]), path):
            if os.path.islink(place):
                raise self._forged(name, "leads through a symbolic link")
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                if any(os.path.islink(os.path.join(folder, entry)) for entry in [*folders, *names]):
                    raise self._forged(name, "holds a symbolic link")
        return path if os.path.exists(path) else None

    def _forged(self, name: object, problem: str) -> AltDiffusionError:
        return AltDiffusionError(
            f"journal in {self._folder}, file {str(name)[:200]!r}",
            problem,
            "this journal was not written by a job: check who can write to the lake, and remove the line",
        )
