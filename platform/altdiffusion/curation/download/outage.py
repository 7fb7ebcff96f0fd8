"""Do the links fail, or the machine that asks? A wrong setting must not be recorded as dead links.

A unit is doubtful where next to nothing came (under 1 %) and nearly all that failed (95 %) did so for reasons that are
the same whether the link is dead or the machine cannot reach it (`OWN`). A half-dead set of links is never doubtful.
Controls decide then: links that are known to have given an image, of hosts as different as there are. If one of them
answers, whatever it answers, the network works. The unit is fetched once more, because the outage may have just ended,
and is recorded as it is then. If none answers, or none is known, the unit is `Unsettled`: nothing is recorded.

A unit of thousands of links that all time out would take hours. So where the first SAMPLE rows were such failures
without one answer, and the time of one link has passed, the controls are asked at once; the unit ends there if none
of them answers.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from altdiffusion.curation.rejects import (
    BAD_RESPONSE,
    BAD_URL,
    BLOCKED_ADDRESS,
    BLOCKED_PORT,
    BLOCKED_SCHEME,
    BLOCKLIST,
    CONNECT,
    DNS,
    HOST_BUSY,
    OPT_OUT_ROBOTS,
    RESET,
    ROBOTS_UNREACHABLE,
    TIMEOUT,
    TLS,
    http_status,
)
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.urls import parse

OWN = frozenset(
    {
        *(CONNECT, DNS, TIMEOUT, TLS, RESET, BLOCKED_ADDRESS, ROBOTS_UNREACHABLE),
        # Answers of something in between: a proxy, a login page of the network.
        *(BAD_RESPONSE, http_status(407), http_status(511)),
    }
)
"""Reasons that may be this machine's fault."""
UNASKED = frozenset({BLOCKLIST, BAD_URL, BLOCKED_SCHEME, BLOCKED_PORT, OPT_OUT_ROBOTS})
"""Reasons that prove nothing about the network: no host was asked, or none need have been."""
SAMPLE = 128
"""Rows."""
_ACCEPTED, _FAILED = 0.01, 0.95
_CONTROLS, _FILES, _RECORDS = 16, 4, 1000

Answers = Callable[[Sequence[str]], bool]
"""Returns whether one of these links answers, whatever it answers."""


def is_doubtful(accepted: int, reasons: Mapping[str, int]) -> bool:
    """Return whether a unit's failures could be the machine's own."""
    failed = sum(count for reason, count in reasons.items() if reason not in UNASKED)
    own = sum(count for reason, count in reasons.items() if reason in OWN)
    return own > 0 and accepted < _ACCEPTED * (accepted + failed) and own >= _FAILED * failed


def is_answer(reason: str) -> bool:
    """Return whether what became of a control (its reason, empty for a body) shows that the network works."""
    return reason not in OWN and reason not in UNASKED and reason != HOST_BUSY  # which may be an old answer


class Outage(Exception):
    """The unit has been given up: no control answers either. `reasons` counts what had failed by then."""

    def __init__(self, accepted: int, reasons: Mapping[str, int]) -> None:
        super().__init__(accepted, dict(reasons))
        self.accepted, self.reasons = accepted, dict(reasons)


class Watch:
    """The watch over one unit while it is fetched, shared by all its threads.

    Args:
        controls: returns links that are known to have given an image; called once, if at all.
        answers: asks these links.
        patience_s: seconds that must have passed before a unit is given up.
    """

    def __init__(self, controls: Callable[[], Sequence[str]], answers: Answers, patience_s: float) -> None:
        self._controls, self._answers = controls, answers
        self._end = time.monotonic() + patience_s
        self._lock = threading.Lock()
        self._reasons: collections.Counter[str] = collections.Counter()
        self._believes = False

    def see(self, reason: str) -> None:
        """Count a row that is done by its reason, which is empty where a body came.

        Raises:
            Outage: nothing has come so far, and no control answers.
        """
        with self._lock:
            if self._believes:
                return
            if reason not in OWN:
                self._believes = reason not in UNASKED
                return
            self._reasons[reason] += 1
            if self._reasons.total() >= SAMPLE and time.monotonic() >= self._end:
                self._decide(0, self._reasons)

    def settle(self, accepted: int, reasons: Mapping[str, int]) -> bool:
        """Decide about a unit whose rows are done; return false where it is doubtful, but a control answers.

        Raises:
            Outage: it is doubtful, and no control answers.
        """
        with self._lock:
            if not is_doubtful(accepted, reasons):
                return True
            self._decide(accepted, reasons)
            return False

    def _decide(self, accepted: int, reasons: Mapping[str, int]) -> None:
        links = self._controls()
        if not links or not self._answers(links):
            raise Outage(accepted, reasons)
        self._believes = True


def controls_of(folder_uri: str, shards: Iterable[ShardInfo]) -> list[str]:
    """Return links of images that have come, of as many hosts as the first few shards with rows hold.

    Args:
        folder_uri: of the dataset's shards.
    """
    links: dict[str, str] = {}
    filled = (shard for shard in shards if shard.rows)
    for shard, _ in zip(filled, range(_FILES), strict=False):
        for url in read_columns(folder_uri, shard, ["url"])["url"].unique().to_pylist():
            target = parse(url)
            if target is not None:
                links.setdefault(target.host, url)
            if len(links) == _CONTROLS:
                return list(links.values())
    return list(links.values())


def recorded_shards(ledger: Ledger) -> Iterable[ShardInfo]:
    """Yield shards of recorded units from all over the ledger, read one by one."""
    ids = sorted(ledger.done_ids())
    step = max(1, len(ids) // _FILES)
    spread = (unit_id for offset in range(step) for unit_id in ids[offset::step])
    for unit_id in itertools.islice(spread, _RECORDS):
        record = ledger.get(unit_id)
        if record is not None and record.shards:
            yield record.shards[0]
