"""Counts of what a program asks of a storage: exists, list and read calls on a folder, requests to an S3 server.

python -m benchmarks.storage_calls LAKE COUNTS.json MODULE [ARGUMENT ...]    runs a module and writes its counts
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HOOKED: list[tuple[str, Counter[str]]] = []


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        for folder, counts in _HOOKED:
            if arguments[0].startswith(folder):
                counts["read"] += 1


sys.addaudithook(_on_event)


@contextlib.contextmanager
def counted(lake: str) -> Iterator[Counter[str]]:
    """Count calls on a lake, a folder or an s3:// address, for the duration of the block."""
    counts: Counter[str] = Counter()
    before = {name: getattr(os, name) for name in ("stat", "lstat", "scandir", "listdir")}

    def counting(name: str, call: Any) -> Any:
        def counted_call(path: Any = ".", *arguments: Any, **named: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(lake):
                counts["list" if name in ("scandir", "listdir") else "exists"] += 1
            return call(path, *arguments, **named)

        return counted_call

    for name, call in before.items():
        setattr(os, name, counting(name, call))
    _HOOKED.append((lake, counts))
    undo = _count_requests(counts) if lake.startswith("s3://") else None
    try:
        yield counts
    finally:
        _HOOKED.remove((lake, counts))
        for name, call in before.items():
            setattr(os, name, call)
        if undo is not None:
            undo()


def _count_requests(counts: Counter[str]) -> Any:
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def counted_call(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        what = "list" if method.startswith("list") else "read" if method.startswith("get") else "exists"
        counts[what] += 1
        return await call(self, method, *arguments, **named)

    s3fs.S3FileSystem._call_s3 = counted_call

    def undo() -> None:
        s3fs.S3FileSystem._call_s3 = call

    return undo


def main() -> None:
    lake, file, module, *arguments = sys.argv[1:]
    if importlib.util.find_spec(module) is None:
        raise SystemExit(f"there is no module {module}")
    sys.argv = [module, *arguments]

    def leave(status: int) -> None:  # the command ends without the interpreter's teardown: not before the counts
        raise SystemExit(status)

    os._exit = leave  # type: ignore[assignment]
    with counted(lake) as counts:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            Path(file).write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
