"""A local file that is named by what was written into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import IO

from altdiffusion.storage import files


def write_by_digest(folder: str, write: Callable[[IO[bytes]], None], name: Callable[[str], str]) -> tuple[str, int]:
    """Write a file into a local folder under a name that its content decides; one that is there already stays.

    What is written goes to the disk as it comes, so that memory does not hold it.

    Args:
        write: is given a file that can be written to, not read.
        name: returns the path from the SHA-256 (hex) of what was written.

    Returns:
        The SHA-256, and the bytes.
    """
    with files.naming(folder, "writing"), files.unnamed(folder) as temporary:
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            write(hashing)  # type: ignore[arg-type]
            file.flush()
            size = file.tell()
            path = name(hashing.sha256.hexdigest())
            if os.path.exists(path) and os.path.getsize(path) == size:
                return hashing.sha256.hexdigest(), size
            os.fsync(file.fileno())
        os.replace(temporary, path)
        files.sync_folder(folder)
    return hashing.sha256.hexdigest(), size


class _Hashing:
    """A file that is written to; it keeps the SHA-256 of all that was written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Do nothing: the file is flushed at the end."""
