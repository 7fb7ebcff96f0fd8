"""A thread that waits for other ranks is recognised by a mark, not by where its code is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from altdiffusion.training.faults import watch as watches
from altdiffusion.training.faults.watch import Watch
from altdiffusion.training.waiting import is_waiting, waiting, waiting_for


def test_marks_nest_and_end_with_their_block() -> None:
    me = threading.get_ident()
    with waiting(), waiting():
        assert is_waiting(me)
    assert not is_waiting(me)
    with pytest.raises(ValueError), waiting():
        raise ValueError
    assert not is_waiting(me)


def test_who_waits_for_a_thread_waits_for_the_ranks_only_while_that_does() -> None:
    inside, done = threading.Event(), threading.Event()

    def save() -> None:
        with waiting():
            inside.set()
            done.wait(60)
        inside.clear()
        done.clear()
        done.wait(60)  # writes to a disk

    thread = threading.Thread(target=save)
    thread.start()
    assert inside.wait(60)
    me = threading.get_ident()
    with waiting_for(thread):
        assert is_waiting(me)
        done.set()
        while inside.is_set() or done.is_set():
            time.sleep(0.001)
        assert not is_waiting(me)
        done.set()
        thread.join()
    assert not is_waiting(me)


@pytest.mark.parametrize("blamed", ["peer", "nobody"])
def test_a_stalled_peer_is_named_and_not_the_waiting_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blamed: str
) -> None:
    """Two ranks of one process. Both are in the same function of the same file; one of them is marked."""
    monkeypatch.setattr(watches, "WATCHERS", 1)
    reported: list[str] = []
    heard, end = threading.Event(), threading.Event()

    def report(text: str) -> None:
        reported.append(text)
        heard.set()

    def stall() -> None:
        end.wait(120)

    def rank(number: int, waits: bool) -> None:
        with Watch(
            str(tmp_path), "r", rank=number, world=2, timeout_s=1.0, step=5, report=report, end=lambda: None
        ) as watch:
            for step in (5, 6, 7):
                watch.step(step)
            if waits:
                with waiting():
                    stall()
            else:
                stall()

    threads = [threading.Thread(target=rank, args=arguments) for arguments in ((0, True), (1, blamed == "nobody"))]
    for thread in threads:
        thread.start()
    assert heard.wait(100)
    end.set()
    for thread in threads:
        thread.join()
    assert ("rank 1 on host" in reported[0] and "rank 0" not in reported[0]) == (blamed == "peer"), reported
    assert ("all ranks wait for each other" in reported[0]) == (blamed == "nobody"), reported
