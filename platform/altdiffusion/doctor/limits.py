"""Limits of this process and container: open files, shared memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from altdiffusion.doctor.line import FAIL, OK, WARN, Line

OPEN_FILES = 65536
LEAST_OPEN_FILES = 4096
SHARED_MEMORY_GIB = 2.0
LEAST_SHARED_MEMORY_GIB = 0.25


def check_limits(shared_memory: str = "/dev/shm") -> Iterator[Line]:
    """Check the number of files that may be open, and the size of shared memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may_raise = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    remedy = f"ulimit -n {OPEN_FILES}" if may_raise else f"docker run --ulimit nofile={OPEN_FILES}, or limits.conf"
    level = FAIL if 0 <= soft < LEAST_OPEN_FILES else WARN if 0 <= soft < OPEN_FILES else OK
    yield Line(level, "open files", f"{soft:,} at most", "" if level == OK else remedy)
    if not os.path.isdir(shared_memory):
        yield Line(FAIL, "shared memory", f"{shared_memory} is missing", "mount a tmpfs there")
        return
    size = os.statvfs(shared_memory)
    gib = size.f_blocks * size.f_frsize / 2**30
    level = FAIL if gib < LEAST_SHARED_MEMORY_GIB else WARN if gib < SHARED_MEMORY_GIB else OK
    remedy = "docker run --shm-size=16g; Kubernetes: an emptyDir with medium Memory at /dev/shm"
    yield Line(level, "shared memory", f"{shared_memory}: {gib:,.1f} GiB", "" if level == OK else remedy)
