"""The lake's storage: reading, writing, put-if-absent, latency and throughput. What is written is removed."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from statistics import median

from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

MIB = 2**20
TRIES = 5
SLOW_S = 1.0
SLOW_MB_S = 5.0


def check_lake(uri: str, mib: int = 16) -> Iterator[Line]:
    """Check what datasets rest on: of two writers of one name the second is refused, and what was written is read.

    Args:
        uri: the lake.
        mib: MiB of the file whose rates are measured.

    Raises:
        AltDiffusionError: the storage refuses or cannot be reached.
    """
    folder = files.join(uri, f".doctor-{uuid.uuid4().hex}")
    try:
        yield from _put_if_absent(files.join(folder, "name"))
        yield _latency(files.join(folder, "small"))
        yield from _rates(files.join(folder, "large"), mib)
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is the one to report
            files.remove_tree(folder, below=uri)
        raise
    try:
        files.remove_tree(folder, below=uri)
    except Exception as error:  # whatever the store answers: what it wrote and read is known by now
        found = f"{folder} cannot be removed ({first_line(error)})"
        yield Line(WARN, "lake delete", found, f"give the right to delete, and remove {folder}")


def _put_if_absent(uri: str) -> Iterator[Line]:
    first, second = files.put_if_absent(uri, b"first"), files.put_if_absent(uri, b"second")
    if first and not second and files.read_bytes(uri) == b"first":
        yield Line(OK, "put-if-absent", "a second writer of the same name is refused")
        return
    remedy = "use a store that honours If-None-Match: two jobs could publish one version otherwise"
    yield Line(FAIL, "put-if-absent", "a second writer of the same name is not refused", remedy)


def _latency(uri: str) -> Line:
    files.write_atomic(uri, b"x")
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        if files.read_bytes(uri) != b"x":
            raise AltDiffusionError(f"lake file {uri}", "is not read as it was written", "use another store")
        seconds.append(time.perf_counter() - began)
    found = f"a small file is read in {median(seconds) * 1000:.2f} ms"
    remedy = "use a store in the same region, or a mount without a gateway"
    return Line(WARN, "lake latency", found, remedy) if median(seconds) > SLOW_S else Line(OK, "lake latency", found)


def _rates(uri: str, mib: int) -> Iterator[Line]:
    data = os.urandom(mib * MIB)
    began = time.perf_counter()
    files.write_atomic(uri, data)
    wrote = time.perf_counter()
    if files.read_bytes(uri) != data:
        remedy = "do not use this store: it does not keep what was written"
        yield Line(FAIL, "lake read", f"{mib} MiB are not read as they were written", remedy)
        return
    read = time.perf_counter()
    for name, seconds in (("lake write", wrote - began), ("lake read", read - wrote)):
        rate = len(data) / 1e6 / seconds
        slow = rate < SLOW_MB_S
        remedy = "use a store in the same region, or a faster disk" if slow else ""
        yield Line(WARN if slow else OK, name, f"{rate:,.0f} MB/s ({mib} MiB, one stream)", remedy)
