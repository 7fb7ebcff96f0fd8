"""What a command prints and reads of its machine: encodings of terminals, and paths that cannot be used."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO

from altdiffusion.errors import AltDiffusionError

_FIXABLE = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EEXIST: "name another path",
    errno.ENOSPC: "make space on its disk, or name a path on another one",
    errno.EDQUOT: "make space, or name a path on another disk",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "check the path: its links lead in a circle",
}
"""Remedies for errors of the operating system that name a file and are not this program's."""


_CONTROLS = re.compile("(?!\\A\r)[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What could move the cursor, change what is on the screen or set a title, and what turns the direction of a line. Left
are tab, newline, and a carriage return at the beginning, by which progress bars redraw their line."""


def visible(text: str) -> str:
    """Return a text with its control characters written as JSON does: it can be printed, and JSON stays valid."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


def print_any_text() -> None:
    """Let standard output and error take any text, also that of strangers.

    What a terminal's encoding does not have is printed as an escape, and so are control characters, which
    captions, hosts and names of files may hold. `control` writes those of our own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not hasattr(stream, "write_controls"):
            stream.reconfigure(errors="backslashreplace")
            write = stream.write
            stream.write_controls = write  # type: ignore[attr-defined]
            stream.write = lambda text, write=write: write(visible(text))  # type: ignore[method-assign,misc]


def control(stream: TextIO, text: str) -> None:
    """Write a text with control characters to a terminal."""
    getattr(stream, "write_controls", stream.write)(text)


@contextlib.contextmanager
def without_noise(mark: bytes) -> Iterator[None]:
    """Leave out the lines with a mark that native code writes to standard error within the block.

    The other lines appear when the block ends.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if mark not in line:
                    os.write(2, line)


@contextlib.contextmanager
def naming_paths() -> Iterator[None]:
    """Turn an error of the operating system on a file into one that names the file and a remedy.

    Raises:
        AltDiffusionError: in place of such an error.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None or error.errno not in _FIXABLE:
            raise
        path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
        problem = (error.strerror or "cannot be used").lower()
        raise AltDiffusionError(f"path {path}", problem, _FIXABLE[error.errno]) from error
