"""Puts records into pages while units run, so that a start after a kill reads few records one by one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from types import TracebackType

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.ledger_pages import PAGE_RECORDS, read_ledger

log = logging.getLogger(__name__)

_SHARE = 10
"""Pages are written when a tenth of the records is new: a listing of all of them is paid ever less often."""


class Folding:
    """Writes pages in a thread, one at a time. Use it as a context manager around the work.

    Pages are a cache: where the storage does not answer, the work goes on without them.

    Args:
        recorded: number of the records that are there already.
    """

    def __init__(self, ledgers: Iterable[Ledger], recorded: int) -> None:
        self._ledgers = tuple(ledgers)
        self._recorded = self._folded = recorded
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Folding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join()

    def advance(self) -> None:
        """Count a record, and start to write pages when there are enough new ones."""
        self._recorded += 1
        if self._recorded - self._folded < max(PAGE_RECORDS, self._recorded // _SHARE):
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._folded = self._recorded
        self._thread = threading.Thread(target=self._fold, name="ledger-pages", daemon=True)
        self._thread.start()

    def _fold(self) -> None:
        for ledger in self._ledgers:
            try:
                read_ledger(ledger)
            except AltDiffusionError as error:
                log.info("pages of ledger %s are not written (%s)", ledger.folder_uri, first_line(error))
