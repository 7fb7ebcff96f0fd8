"""A decoder that was taken over: it tries what the end of an image's bytes names, and answers what came of it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from altdiffusion.curation.images import decoder_process
from altdiffusion.curation.rejects import DECODE

LIBC = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read())} bytes"


def call(number: int, *arguments: int) -> str:
    answer = LIBC.syscall(number, *arguments)
    return f"errno {ctypes.get_errno()}" if answer < 0 else f"returned {answer}"


def memory_of_parent() -> str:
    local = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
    return call(310, os.getppid(), ctypes.addressof(vector), 1, ctypes.addressof(vector), 1, 0)


def thread() -> str:
    ran: list[str] = []
    one = threading.Thread(target=lambda: ran.append("ran"))
    one.start()
    one.join()
    return ran[0]


ATTACKS: dict[str, Callable[[str], str]] = {
    "secrets": lambda _: " ".join(sorted(name for name in os.environ if name.startswith("AWS"))) or "none",
    "read": read,
    "environ": lambda _: read(f"/proc/{os.getppid()}/environ"),
    "list": lambda path: " ".join(os.listdir(path)),
    "write": lambda path: str(os.open(path, os.O_WRONLY | os.O_CREAT)),
    "remove": lambda path: str(os.remove(path)),
    "socket": lambda _: str(socket.socket(socket.AF_INET)),
    "unix": lambda _: str(socket.socket(socket.AF_UNIX)),
    "run": lambda _: str(subprocess.run(["/bin/true"], check=False)),
    "fork": lambda _: str(os.fork()),
    "kill": lambda _: str(os.kill(os.getppid(), signal.SIGTERM)),
    "memory": lambda _: memory_of_parent(),
    "ptrace": lambda _: call(101, 16, os.getppid(), 0, 0),
    "pidfd": lambda _: call(434, os.getppid(), 0),
    "io_uring": lambda _: call(425, 8, 0),
    "core": lambda _: str(resource.getrlimit(resource.RLIMIT_CORE)),
    "import": lambda name: str(__import__(name)),
    "thread": lambda _: thread(),
}


class Decoder(decoder_process.Decoder):
    def __call__(self, body: bytes) -> bytes:
        name, _, argument = body.rpartition(b"TRY:")[2].decode().partition(" ")
        if name == "abort":
            os.abort()
        try:
            outcome = ATTACKS[name](argument)
        except OSError as error:
            outcome = type(error).__name__
        return decoder_process._refusal(DECODE, outcome)


if __name__ == "__main__":
    decoder_process.Decoder = Decoder  # type: ignore[misc]
    assert len(sys.argv) == 3
    decoder_process.main()
