"""The loop of a download: nobody waits beyond the moment it named, nothing is left open, no bug goes unseen."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time

import pytest

from altdiffusion.curation.web.connections import Connection, Deadline, allow_connections
from altdiffusion.curation.web.event_loop import EventLoop, Pending, run, until_ready
from altdiffusion.errors import AltDiffusionError


def test_a_wait_ends_with_the_socket_the_thread_or_the_time() -> None:
    one, other = socket.socketpair()
    pending, ends = Pending(), []

    async def wait(what: socket.socket | Pending, seconds: float) -> None:
        try:
            await until_ready(what, time.monotonic() + seconds)
            ends.append("ready")
        except TimeoutError:
            ends.append("late")

    with one, other, EventLoop() as loop:
        one.setblocking(False)
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop.start(wait(Pending(), 0.05))
        loop.start(wait(pending, 20.0))
        threading.Timer(0.15, pending.done).start()
        while len(ends) < 2:
            loop.turn()
        loop.start(wait(pending, 20.0))  # done already
        while len(ends) < 3:
            loop.turn()
    assert ends == ["late", "ready", "ready"]


def test_waits_of_one_coroutine_have_their_own_ends() -> None:
    """An early end that was not needed must not end a later wait, nor a late one hide an early one."""
    seconds: list[float] = []

    async def waits() -> None:
        first = Pending()
        threading.Timer(0.02, first.done).start()
        await until_ready(first, time.monotonic() + 0.1)
        for wait_s in (0.3, 0.05):
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                await until_ready(Pending(), start + wait_s)
            seconds.append(time.monotonic() - start)

    run(waits())
    assert 0.29 < seconds[0] < 20 and 0.04 < seconds[1] < 20


def test_thousands_of_sockets_are_served_by_one_thread() -> None:
    pairs = [socket.socketpair() for _ in range(500)]
    bodies: list[bytes] = []

    async def read(sock: socket.socket) -> None:
        connection = Connection(sock, Deadline(60.0))
        bodies.append(await connection.read(5))
        connection.end()

    with EventLoop() as loop:
        for one, _ in pairs:
            one.setblocking(False)
            loop.start(read(one))
        for number, (_, other) in enumerate(pairs):
            other.sendall(b"%05d" % number)
            other.close()
        while len(bodies) < len(pairs):
            loop.turn()
    assert sorted(bodies) == [b"%05d" % number for number in range(500)]


def test_lines_and_bodies_are_cut_where_they_end() -> None:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.sendall(b"first\r\nsecond\nlonger than five\nbody and more")

    async def read() -> list[bytes]:
        connection = Connection(one, Deadline(20.0))
        parts = [await connection.readline(100), connection.held_line(100), connection.held_line(5)]
        parts += [await connection.readline(5), await connection.readline(100), await connection.read(4)]
        assert connection.waiting() == len(b" and more")
        other.close()
        return [*parts, await connection.readline(100), await connection.read(5)]

    with one:
        expected = [b"first\r\n", b"second\n", b"", b"longe", b"r than five\n", b"body", b" and more", b""]
        assert run(read()) == expected


def test_the_end_of_a_loop_closes_what_waits_and_a_bug_ends_the_loop() -> None:
    opened = len(os.listdir("/proc/self/fd"))
    closed: list[bool] = []

    async def waits() -> None:
        try:
            await until_ready(Pending(), time.monotonic() + 100)
        finally:
            closed.append(True)

    async def broken() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError), EventLoop() as loop:
        loop.start(waits())
        loop.start(broken())
    assert closed == [True] and len(os.listdir("/proc/self/fd")) == opened
    loop.wake()  # a thread that is late does no harm


def test_more_connections_than_files_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    allow_connections(100, "download.threads 16")
    assert limits == [(1024, 4096)]
    allow_connections(2000, "download.threads 500")
    assert limits[-1] == (2512, 4096)
    with pytest.raises(AltDiffusionError, match=r"download\.threads 2048: needs 5,632 open files.*4,096"):
        allow_connections(5120, "download.threads 2048")
