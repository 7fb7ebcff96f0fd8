"""Names: asked once at a time, remembered for a while, and never waited for longer than there is time."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import DNS, Refused
from altdiffusion.curation.web import names as names_module
from altdiffusion.curation.web.event_loop import EventLoop, run
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.curation.web.names import Names
from altdiffusion.curation.web.resolvers import InThreads, NameServers, NoName, system_resolver


def found(names: Names, host: str, seconds: float = 20.0) -> Sequence[str] | tuple[str, str]:
    """Return the addresses, or reason and detail."""
    try:
        return run(names.addresses(host, 80, time.monotonic() + seconds))
    except Refused as refused:
        return refused.reason, refused.detail


def test_a_name_is_asked_for_once_by_all_that_want_it_and_again_when_it_has_aged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    go = threading.Event()

    def resolver(host: str, port: int, timeout_s: float) -> Sequence[str]:
        asked.append(host)
        go.wait(20)
        return ["192.0.2.1"]

    names, answers = Names(InThreads(resolver)), list[Sequence[str]]()

    async def ask() -> None:
        answers.append(await names.addresses("a.test", 80, time.monotonic() + 20))

    with EventLoop() as loop:
        for _ in range(50):
            loop.start(ask())
        go.set()
        while len(answers) < 50:
            loop.turn()
    assert answers == [["192.0.2.1"]] * 50 and asked == ["a.test"]
    assert found(names, "a.test") == ["192.0.2.1"] and asked == ["a.test"]
    monkeypatch.setattr(names_module.time, "monotonic", lambda now=time.monotonic: now() + names_module.LASTS_S + 1)
    assert found(names, "a.test", 60.0) == ["192.0.2.1"] and asked == ["a.test"] * 2


def test_a_missing_name_is_remembered_and_a_failed_resolver_is_not() -> None:
    asked: list[str] = []

    def resolver(host: str, port: int, timeout_s: float) -> Sequence[str]:
        asked.append(host)
        raise (NoName if host == "none.test" else Refused)(DNS, host)

    names = Names(InThreads(resolver))
    for _ in range(3):
        assert found(names, "none.test") == ("dns", "none.test")
        assert found(names, "failed.test") == ("dns", "failed.test")
    assert asked.count("none.test") == 1 and asked.count("failed.test") == 3
    names.forget_failures()
    assert found(names, "none.test") == ("dns", "none.test") and asked.count("none.test") == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MOST_NAMES", 10)
    names = Names(InThreads(lambda host, port, timeout_s: [host]))
    for number in range(100):
        assert found(names, f"h{number}.test") == [f"h{number}.test"]
        assert len(names._known) <= 10


def test_a_resolver_that_hangs_costs_its_own_names_alone() -> None:
    go = threading.Event()

    def resolver(host: str, port: int, timeout_s: float) -> Sequence[str]:
        if host == "slow.test":
            go.wait(30)
        return ["192.0.2.1"]

    names = Names(InThreads(resolver))
    start = time.monotonic()
    assert found(names, "slow.test", 0.3) == ("timeout", "name slow.test")
    assert found(names, "fast.test") == ["192.0.2.1"]
    assert time.monotonic() - start < 20
    go.set()


def test_an_error_of_the_resolver_reaches_who_asked() -> None:
    def broken(host: str, port: int, timeout_s: float) -> Sequence[str]:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        found(Names(InThreads(broken)), "a.test")


def test_the_systems_resolver_distinguishes_a_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system_resolver("127.0.0.1", 80, 1.0) == ["127.0.0.1"]
    for number, kind in ((socket.EAI_NONAME, NoName), (socket.EAI_AGAIN, Refused)):

        def failing(*_: object, number: int = number, **__: object) -> None:
            raise socket.gaierror(number, "text")

        monkeypatch.setattr(socket, "getaddrinfo", failing)
        with pytest.raises(Refused) as caught:
            system_resolver("a.test", 80, 1.0)
        assert type(caught.value) is kind and caught.value.detail == f"[Errno {number}] text"


# Name servers by c-ares, against a server of the test's:


@contextlib.contextmanager
def name_server(known: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Answer A questions on loopback: `silent.test` never, `busy.test` by SERVFAIL; yield address and questions."""
    asked: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    question, peer = sock.recvfrom(512)
                except OSError:
                    return
                if not question:
                    return  # shut down
                labels, at = [], 12
                while question[at]:
                    labels.append(question[at + 1 : at + 1 + question[at]].decode().lower())
                    at += 1 + question[at]
                host, (kind,) = ".".join(labels), struct.unpack_from(">H", question, at + 1)
                asked.append(host)
                if host == "silent.test":
                    continue
                code = 2 if host == "busy.test" else 0 if host in known else 3
                records = b""
                if code == 0 and kind == 1:
                    records = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(known[host])
                head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, bool(records), 0, 0)
                sock.sendto(head + question[12 : at + 5] + records, peer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{sock.getsockname()[1]}", asked
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def test_name_servers_are_asked_and_their_refusals_are_worded_as_the_systems() -> None:
    with name_server({"a.test": "192.0.2.7"}) as (address, asked):
        names = Names(NameServers([address], 1.0))
        assert found(names, "a.test") == ["192.0.2.7"]
        count = asked.count("a.test")
        assert found(names, "a.test") == ["192.0.2.7"] and asked.count("a.test") == count
        assert found(names, "none.test") == ("dns", "[Errno -2] Name or service not known")
        assert found(names, "busy.test") == ("dns", "[Errno -3] Temporary failure in name resolution")
        assert found(names, "silent.test", 0.3) == ("timeout", "name silent.test")


def test_what_a_name_server_answers_is_checked() -> None:
    with name_server({"inside.test": "127.0.0.1", "metadata.test": "169.254.169.254"}) as (address, _):
        fetch = Fetcher(DownloadConfig(name_servers=(address,), deadline_s=20.0))
        for host in ("inside.test", "metadata.test"):
            with pytest.raises(Refused) as caught:
                fetch.fetch(f"http://{host}/")
            assert caught.value.reason == "blocked_address"


@pytest.mark.parametrize("wrong", ["dns.example", "10.0.0.1:dns", "10.0.0.1:0", "10.0.0.300", "", "fd00::1:x", "[::1"])
def test_a_name_server_is_an_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="name_servers"):
        DownloadConfig(name_servers=(wrong,))


def test_name_servers_may_be_of_either_family() -> None:
    DownloadConfig(name_servers=("10.0.0.53", "10.0.0.53:5353", "fd00::53", "[fd00::53]", "[fd00::53]:5353"))
