"""The loop of a download: each row that the schedule has fetched is decoded and stored, or refused with its reason.

    links -> Schedule (guarded fetch) -> inspect (header) -> DecoderPool (decode, img2dataset's Resizer) -> SpillFile

The schedule's thread fetches. The threads here take what has been fetched in its order of arrival. There is one more
than decoder processes, so that the next body has been checked when a decoder is done with the last one. A thread holds
one body and one stored image at a time; what waits to be taken is bounded by the schedule, and what is stored is in the
spill file. Memory therefore does not grow with the images of a unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed

import pyarrow as pa

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.download.outage import Watch
from altdiffusion.curation.download.spill import SpillFile
from altdiffusion.curation.images.color import PROFILED
from altdiffusion.curation.images.decode_guard import inspect
from altdiffusion.curation.images.decoder_pool import DecoderPool
from altdiffusion.curation.images.source_hash import VERDICTS, Verdict, judge
from altdiffusion.curation.rejects import BLOCKLIST, CONTENT_CHANGED, Refused
from altdiffusion.curation.web.schedule import Result, Schedule


def settle_rows(schedule: Schedule, settler: RowSettler, *, threads: int) -> None:
    """Settle every row of a schedule.

    Raises:
        Outage: the settler's watch has given the unit up.
        AltDiffusionError: the spill file could not be written, or a decoder does not start.
    """

    def settle() -> None:
        for result in schedule:
            settler(result)

    with ThreadPoolExecutor(threads, "settle") as pool:
        try:
            for ended in as_completed([pool.submit(settle) for _ in range(threads)]):
                ended.result()
        except BaseException as problem:  # an interrupt of this thread too: no other thread may wait for rows then
            schedule.fail(problem)
            raise


class RowSettler:
    """Decides what becomes of a fetched row and notes it in the spill file; used by any number of threads.

    Args:
        expected: string, the hash that the source states for each row, as in LINKS.
        unwanted: sets of SHA-256 (hex) of images that are not taken.
        watch: is shown each row's reason; None where every failure is believed.
    """

    def __init__(
        self,
        spill: SpillFile,
        decoders: DecoderPool,
        config: DownloadConfig,
        *,
        expected: pa.Array,
        unwanted: Sequence[Set[str]],
        watch: Watch | None,
    ) -> None:
        self._spill, self._decoders, self._config = spill, decoders, config
        self._expected, self._unwanted, self._watch = expected, unwanted, watch

    def __call__(self, result: Result) -> None:
        """Store the row's image, or the reason why it has none.

        Raises:
            Outage: the watch gives the unit up.
            AltDiffusionError: the spill file could not be written, or a decoder does not start.
        """
        if self._watch is not None:
            self._watch.see(result.reason)
        try:
            if result.body is None:
                raise Refused(result.reason, result.detail)
            self._store(result, result.body)
        except Refused as refused:
            self._spill.refuse(result.row, refused.reason, refused.detail)

    def _store(self, result: Result, body: bytes) -> None:
        digest = hashlib.sha256(body)
        sha256 = digest.hexdigest()
        if any(sha256 in listed for listed in self._unwanted):
            raise Refused(BLOCKLIST, "")
        inspect(body, self._config)
        decoded = self._decoders.decode(body)
        verdict = self._verdict(result.row, body, sha256, decoded.whole_phash)
        self._spill.store(
            result.row,
            decoded.body,
            sides=(decoded.width, decoded.height, decoded.original_width, decoded.original_height),
            sha256=digest.digest(),
            phash=decoded.phash,
            verdict=0 if verdict is None else 1 + VERDICTS.index(verdict),
            profiled=0 if decoded.profiled is None else 1 + PROFILED.index(decoded.profiled),
            final_url=result.final_url,
        )

    def _verdict(self, row: int, body: bytes, sha256: str, phash: int) -> Verdict | None:
        expected = self._expected[row].as_py()
        verdict = judge(expected, body, sha256, phash, max_distance=self._config.phash_distance)
        if verdict == "mismatch" and self._config.on_mismatch == "reject":
            raise Refused(CONTENT_CHANGED, f"the source states {expected}")
        return verdict
