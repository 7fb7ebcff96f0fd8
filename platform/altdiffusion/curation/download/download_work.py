"""Download: links -> images, with img2dataset's Downloader and our guarded fetch in it.

img2dataset's loop, thread pool and Resizer do the work; what they call in between is ours: instead of opening a URL
itself it is handed the next body that the schedule has fetched, already decoded, resized and encoded by a decoder
process (`_Gate`); its resizer passes that on; its writer fills a file on this machine (`spool`), because images
come in order of arrival and shards are in input order. The functions are replaced in a copy of its method: no module
is patched. It holds some 200 bytes a row, so that a long unit is several of its shards, which share one schedule:
which row the next image is of is for us to know. Every row without an image becomes a reject with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from altdiffusion.curation.config import DownloadConfig, ScoreConfig
from altdiffusion.curation.download.img2dataset_part import part
from altdiffusion.curation.download.outage import (
    Outage,
    Watch,
    controls_of,
    is_answer,
    recorded_shards,
)
from altdiffusion.curation.download.spill import Rows, Spool
from altdiffusion.curation.images.color import PROFILED
from altdiffusion.curation.images.decode_guard import inspect
from altdiffusion.curation.images.decoder_pool import Decoded, DecoderPool
from altdiffusion.curation.images.source_hash import VERDICTS, judge
from altdiffusion.curation.links.blocklist import Blocklist, load_blocklist
from altdiffusion.curation.links.urls import url_keys
from altdiffusion.curation.rejects import BLOCKLIST, CONTENT_CHANGED, Refused, rejected
from altdiffusion.curation.scoring.score_work import Scorer, make_scorer
from altdiffusion.curation.tally import tally_images
from altdiffusion.curation.web.addresses import Resolver
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.curation.web.robots import RobotsCache
from altdiffusion.curation.web.schedule import Paces, Result, Schedule
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.units import Unit, Unsettled
from altdiffusion.records import IMAGES
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import Ledger, UnitRecord

Pinned = tuple[str, str]
"""URI of a file and its SHA-256 (hex)."""
Controls = Callable[[], Sequence[str]]
"""Tells links that are known to have given an image."""
_ROWS = 10_000
"""Of one shard of img2dataset."""


def plan_download(links: Version, rows_per_unit: int) -> list[Unit]:
    """Units of a links version, in input order."""
    return plan_ranges(links, rows_per_unit)


class DownloadWork(RangeWork):
    """Works a row range of links. `aesthetic_score` comes from the scorer, in the same pass.

    Args:
        blocklists: of the sources: their links and domains must not be reached through a redirect either.
        ledger: of this work, which tells links that have come; None believes every failure (`outage`).
    """

    def __init__(
        self,
        *,
        lake: str,
        dataset: str,
        download: DownloadConfig,
        score: ScoreConfig | None = None,
        resolver: Resolver | None = None,
        blocklists: Sequence[Pinned] = (),
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self._ledger = ledger
        self._crawler = Crawler(download, score or ScoreConfig(), resolver, blocklists)

    def setup(self) -> None:
        """Makes the fetcher and loads scorer and blocklist."""
        self._crawler.setup()

    def close(self) -> None:
        """Ends the decoders and closes connections; the end of the process does the same."""
        self._crawler.close()

    def run(self, unit: Unit) -> UnitRecord:
        """Downloads, resizes, scores and writes one unit."""
        links = self.rows_of(unit)
        with (
            unsettled(unit, links.num_rows),
            self._crawler.crawl(links, controls=self._controls(), twice=True) as crawled,
        ):
            rows, reasons, details = crawled.refused()
            return finish_unit(
                self.output,
                unit,
                rows_in=links.num_rows,
                accepted=crawled.tables(),
                rejects=[rejected(unit.id, links, rows, reasons, detail=details)],
                tally=tally_images,
            )

    def _controls(self) -> Controls | None:
        ledger = self._ledger
        folder = files.join(self.output.folder_uri, "shards")
        return None if ledger is None else lambda: controls_of(folder, recorded_shards(ledger))


@contextlib.contextmanager
def unsettled(unit: Unit, rows: int) -> Iterator[None]:
    """Turn an outage into a unit that is not recorded."""
    try:
        yield
    except Outage as outage:
        tried = min(rows, sum(outage.reasons.values()) + outage.accepted)
        raise Unsettled(unit.id, tried, outage.accepted, outage.reasons) from None


class Crawler:
    """What a worker keeps from unit to unit: connections, decoders, what sites said and how fast they were asked."""

    def __init__(
        self,
        config: DownloadConfig,
        score: ScoreConfig,
        resolver: Resolver | None = None,
        blocklists: Sequence[Pinned] = (),
    ) -> None:
        self.config, self._score, self._resolver, self._blocklists = config, score, resolver, blocklists
        self._tools: _Tools | None = None

    def setup(self) -> None:
        """Makes all of it.

        Raises:
            AltDiffusionError: the file of certificate authorities, the blocklist or the scorer is not as configured.
        """
        config = self.config
        fetcher = Fetcher(config, self._resolver)
        self._tools = _Tools(
            fetcher=fetcher,
            robots=RobotsCache(fetcher, config) if config.honor_robots else None,
            paces=Paces(),
            decoders=DecoderPool(config),
            scorer=make_scorer(self._score),
            blocklist=_blocklist(config, self._blocklists),
        )

    def close(self) -> None:
        """Ends the decoders and closes connections."""
        if self._tools is not None:
            self._tools.decoders.close()
            self._tools.fetcher.close()

    @contextlib.contextmanager
    def crawl(
        self,
        links: pa.Table,
        *,
        gone: Set[str] = frozenset(),
        controls: Controls | None = None,
        twice: bool = False,
    ) -> Iterator[Crawled]:
        """Fetch every link of a LINKS table; what was fetched can be read within the block.

        Args:
            gone: SHA-256 (hex) of images that are not taken, beside those of the blocklists.
            controls: tells links that are known to answer; None believes every failure.
            twice: whether links that all failed are fetched once more where a control answers: an outage may have
                just ended.

        Raises:
            Outage: next to nothing came, for reasons that may be the machine's own, and no control answers.
        """
        if self._tools is None:
            raise RuntimeError("setup() has not been called")
        watched = controls is not None and not self.config.believe_failures
        for last in (False, True) if watched and twice else (True,):
            with tempfile.TemporaryDirectory(prefix="altdiffusion-download-") as folder:
                with contextlib.closing(Spool(os.path.join(folder, "pictures"), links.num_rows)) as spool:
                    settled = self._fetch(links, spool, folder, gone, controls if watched else None)
                    if settled or last:
                        yield Crawled(links, spool, self._tools.scorer, self.config)
                        return

    def _fetch(self, links: pa.Table, spool: Spool, folder: str, gone: Set[str], controls: Controls | None) -> bool:
        """Fills the spool; false where next to nothing came although the network works."""
        tools = self._tools
        assert tools is not None
        watch = None if controls is None else self._watch(controls)
        try:
            _download(links, spool, tools, self.config, folder, gone, watch)
            reasons = spool.reasons()
            return watch is None or watch.settle(links.num_rows - sum(reasons.values()), reasons)
        except Outage:
            if tools.robots is not None:
                tools.robots.forget_problems()
            raise

    def _watch(self, controls: Controls) -> Watch:
        tools, config = self._tools, self.config
        assert tools is not None

        def answers(links: Sequence[str]) -> bool:
            urls = pa.array(links, pa.string())
            if tools.robots is not None:
                tools.robots.forget_problems()  # else these would speak for the sites, now and in the next unit
            once = replace(config, retries=0, host_wait_s=config.deadline_s)
            with Schedule(urls, tools.fetcher, tools.robots, Paces(), once) as schedule:  # one request per host
                found = [schedule.next() for _ in links]
            return any(is_answer(one.reason) for one in found)

        return Watch(controls, answers, config.deadline_s)


@dataclass(frozen=True, kw_only=True)
class _Tools:
    fetcher: Fetcher
    robots: RobotsCache | None
    paces: Paces
    decoders: DecoderPool
    scorer: Scorer
    blocklist: Blocklist | None


def _blocklist(config: DownloadConfig, more: Sequence[Pinned]) -> Blocklist | None:
    """What must not be fetched or written; None where nothing is listed."""
    lists = list(more)
    if config.image_blocklist is not None and config.image_blocklist_sha256 is not None:
        lists.append((config.image_blocklist, config.image_blocklist_sha256))
    found = Blocklist.union([load_blocklist(uri, sha256) for uri, sha256 in dict.fromkeys(lists)]) if lists else None
    return found or None


class Crawled:
    """What became of a table of links."""

    def __init__(self, links: pa.Table, spool: Spool, scorer: Scorer, config: DownloadConfig) -> None:
        self._links, self._spool, self._scorer, self._config = links, spool, scorer, config

    def tables(self) -> Iterator[pa.Table]:
        """IMAGES rows in input order, a shard's at a time."""
        for rows in self._spool.stored(self._config.shard_mib << 20):
            yield self._table(rows)

    def refused(self) -> tuple[Rows, pa.Array, pa.Array]:
        """Rows without an image, in order; reason and detail of each."""
        return self._spool.refused()

    def _table(self, rows: Rows) -> pa.Table:
        spool, base = self._spool, self._links.take(pa.array(rows))
        columns: dict[str, Any] = {name: base[name] for name in base.column_names}
        columns.setdefault("original_caption", pa.nulls(len(rows), pa.string()))  # links of an earlier version
        columns["image"] = pa.chunked_array([spool.images(rows)])
        columns["image_format"] = pa.repeat(self._config.encode_format, len(rows))
        columns["image_sha256"] = pa.array([bytes(digest).hex() for digest in spool.column("sha256", rows)])
        columns["hash_verdict"] = pa.array([None, *VERDICTS]).take(pa.array(spool.column("verdict", rows)))
        columns["color_profile"] = pa.array([None, *PROFILED]).take(pa.array(spool.column("profiled", rows)))
        columns["phash"] = pa.array(spool.column("phash", rows))
        for side in ("width", "height"):
            columns[f"original_{side}"] = pa.array(spool.column(f"original_{side}", rows))
            columns[f"stored_{side}"] = pa.array(spool.column(side, rows))
        columns["aesthetic_score"] = pa.nulls(len(rows), pa.float32())
        columns["final_url"] = spool.final_urls(rows)
        images = pa.table([columns[field.name].cast(field.type) for field in IMAGES], schema=IMAGES)
        scores = self._scorer.score(images)
        return images.set_column(IMAGES.get_field_index("aesthetic_score"), "aesthetic_score", scores).cast(IMAGES)


class _Image(bytes):
    """A stored file that knows its row."""

    row: int


class _Stream:
    """Stands in for the stream that img2dataset hands from its download to its resizer."""

    def __init__(self, row: int, decoded: Decoded) -> None:
        self.row, self.decoded = row, decoded

    def seek(self, _: int) -> None:
        """There is nothing to rewind."""

    def close(self) -> None:
        """Nothing is open."""


class _Gate:
    """Stands in for `download_image_with_retry`: gives the next image there is, whichever row was asked for.

    img2dataset calls it once a row from as many threads as there are decoders. It must not raise: img2dataset would
    wait for ever for the rows that are left.
    """

    def __init__(
        self,
        schedule: Schedule,
        spool: Spool,
        tools: _Tools,
        expected: pa.Array,
        config: DownloadConfig,
        gone: Set[str],
        watch: Watch | None,
    ) -> None:
        self._schedule, self._spool, self._tools = schedule, spool, tools
        self._expected, self._config, self._gone, self._watch = expected, config, gone, watch
        self._blocked: Set[str] = frozenset() if tools.blocklist is None else tools.blocklist.image_sha256

    def __call__(self, asked: tuple[int, None], **_: Any) -> tuple[int, _Stream | None, str | None]:
        """(what was asked for, image of some row or None, reason or None)."""
        try:
            result = self._schedule.next()
            if self._watch is not None:
                self._watch.see(result.reason)
            try:
                if result.body is None:
                    raise Refused(result.reason, result.detail)
                return asked[0], _Stream(result.row, self._image(result, result.body)), None
            except Refused as refused:
                self._spool.refuse(result.row, refused.reason, refused.detail)
                return asked[0], None, refused.reason
        except Exception as problem:
            self._schedule.fail(problem)
            return asked[0], None, "internal"

    def _image(self, result: Result, body: bytes) -> Decoded:
        row = result.row
        digest = hashlib.sha256(body)
        sha256 = digest.hexdigest()
        if sha256 in self._blocked or sha256 in self._gone:
            raise Refused(BLOCKLIST, "")
        inspect(body, self._config)
        decoded = self._tools.decoders.decode(body)
        expected = self._expected[row].as_py()
        verdict = judge(
            expected, body, sha256, decoded.whole_phash, max_distance=self._config.phash_distance
        )  # fmt: skip
        if verdict == "mismatch" and self._config.on_mismatch == "reject":
            raise Refused(CONTENT_CHANGED, f"the source states {expected}")
        number = 0 if verdict is None else 1 + VERDICTS.index(verdict)
        profiled = 0 if decoded.profiled is None else 1 + PROFILED.index(decoded.profiled)
        self._spool.describe(
            row,
            sha256=digest.digest(),
            phash=decoded.phash,
            verdict=number,
            profiled=profiled,
            final_url=result.final_url,
        )
        return decoded


def _pass_on(stream: _Stream, _: Any = None) -> tuple[_Image, int, int, int, int, None]:
    """Stands in for img2dataset's Resizer, which has already been called, in a decoder."""
    decoded = stream.decoded
    image = _Image(decoded.body)
    image.row = stream.row
    return image, decoded.width, decoded.height, decoded.original_width, decoded.original_height, None


class _Writer:
    """Stands in for img2dataset's writers."""

    def __init__(self, spool: Spool, schedule: Schedule) -> None:
        self._spool, self._schedule = spool, schedule

    def write(self, image: _Image | None, _: str, __: str | None, meta: dict[str, Any]) -> None:
        if image is None:
            return  # the gate has noted why
        sides = (meta["width"], meta["height"], meta["original_width"], meta["original_height"])
        try:
            self._spool.store(image.row, image, sides)
        except Exception as problem:  # img2dataset would print it and go on
            self._schedule.fail(problem)

    def close(self) -> None:
        """The spool is closed by who made it."""


def _download(
    links: pa.Table,
    spool: Spool,
    tools: _Tools,
    config: DownloadConfig,
    folder: str,
    gone: Set[str],
    watch: Watch | None,
) -> None:
    """Runs img2dataset's Downloader over the rows; then each is stored or refused in the spool."""
    if not links.num_rows:
        return
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    urls, expected = (links[name].combine_chunks() for name in ("url", "expected_hash"))
    said = io.StringIO()
    listed = None
    if tools.blocklist is not None:
        listed = tools.blocklist.blocks(url_keys(urls), links["sample_id"].combine_chunks())
    with Schedule(
        urls, tools.fetcher, tools.robots, tools.paces, config, listed=listed, blocklist=tools.blocklist
    ) as schedule:
        downloader = _with_gate(_Gate(schedule, spool, tools, expected, config, gone, watch))(
            sample_writer_class=lambda *_: _Writer(spool, schedule),
            resizer=_pass_on,
            thread_count=config.decoders,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["url"],
            timeout=config.deadline_s,
            number_sample_per_shard=_ROWS,
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format=config.encode_format,
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        for start in range(0, links.num_rows, _ROWS):
            shard = _nameless(min(_ROWS, links.num_rows - start), folder)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                done, _ = downloader((0, shard))
            schedule.raise_problem()
            if not done:
                raise RuntimeError(f"img2dataset's Downloader failed: {said.getvalue()[-2000:]}")
    spool.finish()


def _nameless(rows: int, folder: str) -> str:
    """A shard as img2dataset reads it, of rows without their links: it would hold each of them twice."""
    path = os.path.join(folder, "rows.feather")
    table = pa.table({"url": pa.nulls(rows, pa.string())})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


@functools.cache
def _downloader() -> tuple[type, types.FunctionType]:
    """img2dataset's Downloader and the method of it that calls `download_image_with_retry`."""
    found: Any = part("downloader")
    method: types.FunctionType = found.Downloader.download_shard
    if "download_image_with_retry" not in _names(method.__code__):
        raise AltDiffusionError(
            "img2dataset", "does not call download_image_with_retry any more", "install the pinned version 1.47.0"
        )
    return found.Downloader, method


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _with_gate(gate: _Gate) -> Any:
    """A subclass whose `download_shard` is img2dataset's own code, with our function under the name it calls."""
    downloader, method = _downloader()
    names = {**method.__globals__, "download_image_with_retry": gate}
    own = types.FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    return type("GuardedDownloader", (downloader,), {"download_shard": own})
