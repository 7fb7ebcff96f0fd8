"""A worker's crawler: a table of links in, the images that came and the reasons for the others out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from altdiffusion.curation.config import DownloadConfig, ScoreConfig
from altdiffusion.curation.download.download_loop import RowSettler, settle_rows
from altdiffusion.curation.download.outage import Outage, Watch, is_answer
from altdiffusion.curation.download.spill import Rows, SpillFile
from altdiffusion.curation.images.color import PROFILED
from altdiffusion.curation.images.decoder_pool import DecoderPool
from altdiffusion.curation.images.source_hash import VERDICTS
from altdiffusion.curation.scoring.score_work import Scorer, make_scorer
from altdiffusion.curation.web.blocklist import Blocklist, load_blocklist
from altdiffusion.curation.web.fetch import Fetcher
from altdiffusion.curation.web.resolvers import Resolver
from altdiffusion.curation.web.robots import RobotsCache
from altdiffusion.curation.web.schedule import Paces, Schedule
from altdiffusion.records import IMAGES
from altdiffusion.urls import url_keys

Pinned = tuple[str, str]
"""URI of a file and its SHA-256 (hex)."""
Controls = Callable[[], Sequence[str]]
"""Returns links that are known to have given an image."""


class Crawler:
    """The state of a worker from unit to unit: connections, decoders, robots.txt files and the pace of each host."""

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
        """Make all of it.

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
        """End the decoders and close the connections."""
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
            gone: SHA-256 (hex) of images that are not taken, in addition to those of the blocklists.
            controls: returns links that are known to answer; None believes every failure.
            twice: whether links that all failed are fetched once more where a control answers: an outage may have
                just ended.

        Raises:
            Outage: next to nothing came, for reasons that may be the machine's own, and no control answers.
        """
        tools = self._tools
        if tools is None:
            raise RuntimeError("setup() has not been called")
        watched = controls is not None and not self.config.believe_failures
        for last in (False, True) if watched and twice else (True,):
            with tempfile.TemporaryDirectory(prefix="altdiffusion-download-") as folder:
                with contextlib.closing(SpillFile(os.path.join(folder, "images"), links.num_rows)) as spill:
                    settled = self._fetch(tools, links, spill, gone, controls if watched else None)
                    if settled or last:
                        yield Crawled(links, spill, tools.scorer, self.config)
                        return

    def _fetch(
        self, tools: _Tools, links: pa.Table, spill: SpillFile, gone: Set[str], controls: Controls | None
    ) -> bool:
        """Fill the spill file; return false where next to nothing came although the network works."""
        watch = None if controls is None else self._watch(tools, controls)
        listed = frozenset() if tools.blocklist is None else tools.blocklist.image_sha256
        settler = RowSettler(
            spill,
            tools.decoders,
            self.config,
            expected=links["expected_hash"].combine_chunks(),
            unwanted=(listed, gone),
            watch=watch,
        )
        try:
            with self._schedule(tools, links) as schedule:
                settle_rows(schedule, settler, threads=tools.decoders.size + 1)
            spill.finish()
            reasons = spill.reasons()
            return watch is None or watch.settle(links.num_rows - sum(reasons.values()), reasons)
        except Outage:
            tools.forget_failures()
            raise

    def _schedule(self, tools: _Tools, links: pa.Table) -> Schedule:
        urls, listed = links["url"].combine_chunks(), None
        if tools.blocklist is not None:
            listed = tools.blocklist.blocks(url_keys(urls), links["sample_id"].combine_chunks())
        return Schedule(
            urls,
            tools.fetcher,
            tools.robots,
            tools.paces,
            self.config,
            listed=listed,
            blocklist=tools.blocklist,
        )

    def _watch(self, tools: _Tools, controls: Controls) -> Watch:
        def answers(links: Sequence[str]) -> bool:
            urls = pa.array(links, pa.string())
            tools.forget_failures()  # else these would speak for the sites, now and in the next unit
            once = replace(self.config, retries=0, host_wait_s=self.config.deadline_s)
            with Schedule(urls, tools.fetcher, tools.robots, Paces(), once) as schedule:  # one request per host
                results = list(schedule)
            return any(is_answer(result.reason) for result in results)

        return Watch(controls, answers, self.config.deadline_s)


@dataclass(frozen=True, kw_only=True)
class _Tools:
    fetcher: Fetcher
    robots: RobotsCache | None
    paces: Paces
    decoders: DecoderPool
    scorer: Scorer
    blocklist: Blocklist | None

    def forget_failures(self) -> None:
        """Forget what may have failed because of the network: it may be another one by now."""
        self.fetcher.forget_failures()
        if self.robots is not None:
            self.robots.forget_problems()


def _blocklist(config: DownloadConfig, more: Sequence[Pinned]) -> Blocklist | None:
    """Return what must not be fetched or written; None where nothing is listed."""
    lists = list(more)
    if config.image_blocklist is not None and config.image_blocklist_sha256 is not None:
        lists.append((config.image_blocklist, config.image_blocklist_sha256))
    union = Blocklist.union([load_blocklist(uri, sha256) for uri, sha256 in dict.fromkeys(lists)]) if lists else None
    return union or None


class Crawled:
    """What became of a table of links."""

    def __init__(self, links: pa.Table, spill: SpillFile, scorer: Scorer, config: DownloadConfig) -> None:
        self._links, self._spill, self._scorer, self._config = links, spill, scorer, config

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of one IMAGES shard after the other, in input order."""
        for rows in self._spill.stored(self._config.shard_mib << 20):
            yield self._table(rows)

    def refused(self) -> tuple[Rows, pa.Array, pa.Array]:
        """Return the rows without an image, in order, and the reason and the detail of each."""
        return self._spill.refused()

    def _table(self, rows: Rows) -> pa.Table:
        spill, base = self._spill, self._links.take(pa.array(rows))
        columns: dict[str, Any] = {name: base[name] for name in base.column_names}
        columns.setdefault("original_caption", pa.nulls(len(rows), pa.string()))  # links of an earlier version
        columns["image"] = pa.chunked_array([spill.images(rows)])
        columns["image_format"] = pa.repeat(self._config.encode_format, len(rows))
        columns["image_sha256"] = pa.array([bytes(digest).hex() for digest in spill.column("sha256", rows)])
        columns["hash_verdict"] = pa.array([None, *VERDICTS]).take(pa.array(spill.column("verdict", rows)))
        columns["color_profile"] = pa.array([None, *PROFILED]).take(pa.array(spill.column("profiled", rows)))
        columns["phash"] = pa.array(spill.column("phash", rows))
        for side in ("width", "height"):
            columns[f"original_{side}"] = pa.array(spill.column(f"original_{side}", rows))
            columns[f"stored_{side}"] = pa.array(spill.column(side, rows))
        columns["aesthetic_score"] = pa.nulls(len(rows), pa.float32())
        columns["final_url"] = spill.final_urls(rows)
        images = pa.table([columns[field.name].cast(field.type) for field in IMAGES], schema=IMAGES)
        scores = self._scorer.score(images)
        return images.set_column(IMAGES.get_field_index("aesthetic_score"), "aesthetic_score", scores).cast(IMAGES)
