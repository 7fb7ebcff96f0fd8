"""What a decoder gives up before it reads a byte of a stranger: files, programs, connections, other processes.

Linux lets a process drop rights for good without being root. Two mechanisms are used, each for what the other cannot
do, and both without a program or library of their own:

- Landlock (Linux 5.13) leaves code readable, so that a module that is needed late can be imported, and nothing else:
  no home folder, no lake, no `/proc` with the environment of the worker.
- A seccomp filter (Linux 3.17) refuses to make sockets, to run programs, to make processes, to read the memory of
  others, to send them signals, and calls that have no use here and a history of holes. What it refuses is an error
  (EPERM) in the code that asked.

The connection to the worker is kept, because it is open already.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

NO_LANDLOCK, NO_SECCOMP = 1, 2
"""What `confine` could not do, as bits."""

_DESCRIPTORS = 64
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/dev/null")

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ACCESSES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files that a version of Landlock knows."""

# linux/seccomp.h, linux/bpf_common.h
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32 = 0x40000000

_REFUSED = {
    # socket, connect, accept, bind, listen, socketpair, accept4, fork, vfork, execve, execveat, ptrace,
    # process_vm_readv, process_vm_writev, kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, unshare, setns, mount, bpf,
    # add_key, request_key, keyctl, userfaultfd, perf_event_open, kcmp
    "x86_64": (
        41, 42, 43, 49, 50, 53, 288, 57, 58, 59, 322, 101, 310, 311, 62, 200, 129, 297, 272, 308, 165, 321,
        248, 249, 250, 323, 298, 312,
    ),
    "aarch64": (
        198, 203, 202, 200, 201, 199, 242, 221, 281, 117, 270, 271, 129, 130, 138, 240, 97, 268, 40, 280,
        217, 218, 219, 282, 241, 272,
    ),
}  # fmt: skip
_REFUSED_EVERYWHERE = (424, 425, 434, 438)
"""pidfd_send_signal, io_uring_setup, pidfd_open, pidfd_getfd: newer calls have one number everywhere."""
_CLONE3 = 435
_NUMBERS = {"x86_64": (0xC000003E, 317, 56, 234, 126), "aarch64": (0xC00000B7, 277, 220, 131, 91)}
"""The architecture's own number; seccomp, clone, tgkill, capset."""

_libc = ctypes.CDLL(None, use_errno=True)


def confine() -> int:
    """Give up for good what this process does not need; nothing that is open already is closed.

    Returns:
        0, or the bits of what this machine's kernel does not offer.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    _libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: nothing that it may run has more rights than it
    missing = 0
    if not _only_code_is_readable():
        missing |= NO_LANDLOCK
    _drop_capabilities()
    if not _refuse_calls():
        missing |= NO_SECCOMP
    return missing


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has; less than 1 where it has none."""
    return int(_libc.syscall(_CREATE_RULESET, None, 0, 1))


def _only_code_is_readable() -> bool:
    version = landlock_version()
    if version < 1:
        return False
    handled = _ACCESSES[max(known for known in _ACCESSES if known <= version)]
    attributes = struct.pack("=Q", handled)
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path in sorted(set(_code())):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), _opened(path) as opened:
                rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
                _libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, opened), 0)
        return bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _code() -> Iterator[str]:
    """Yield the folders and files that modules and libraries are read from."""
    yield from _LIBRARIES
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    yield from (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib"))
    yield from (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "." not in name:
            yield os.path.dirname(file) if Path(file).name.startswith("__init__.") else file


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _drop_capabilities() -> None:
    """Drop what distinguishes root from the owner of its files."""
    known = _NUMBERS.get(platform.machine())
    if known is not None:
        _libc.syscall(known[4], struct.pack("=Ii", 0x20080522, 0), bytes(24))


def _refuse_calls() -> bool:
    machine = platform.machine()
    if machine not in _NUMBERS:
        return False
    code = b"".join(struct.pack("=HBBI", *step) for step in _program(machine))
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    return bool(_libc.syscall(_NUMBERS[machine][1], 1, 1, header) == 0)  # a filter, for all threads


def _program(machine: str) -> Iterable[tuple[int, int, int, int]]:
    """Return the filter: steps of (operation, steps to skip if true, if false, value)."""
    architecture, _, clone, tgkill, _ = _NUMBERS[machine]
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),  # libraries then use clone, whose flags a filter can read
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_HAS_BITS, 0, 1, _CLONE_THREAD),
        allow,
        refuse,
        (_EQUAL, 0, 4, tgkill),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, os.getpid()),
        allow,  # by which it aborts
        refuse,
    ]
    for number in (*_REFUSED[machine], *_REFUSED_EVERYWHERE):
        steps += [(_EQUAL, 0, 1, number), refuse]
    return [*steps, allow]
