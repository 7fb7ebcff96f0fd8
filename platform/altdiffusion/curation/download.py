"""Download: links -> images, with img2dataset's Downloader and our guarded fetch in it.

One unit is one shard of img2dataset: its reader, thread pool, Resizer and Parquet writer do the work in a temporary
folder on this machine. One function of it is replaced, the one that opens a URL, in a copy of its method, so that no
module is patched. Its output is then put into input order (it writes in order of arrival) and into our schema; every
row that has no picture becomes a reject with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.addresses import Refused, Resolver
from altdiffusion.curation.config import DownloadConfig, ScoreConfig
from altdiffusion.curation.decode_guard import inspect, plain_image
from altdiffusion.curation.fetch import Fetcher
from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.curation.score import Scorer, make_scorer
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import plan_ranges, read_range
from altdiffusion.records import IMAGES
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.files import sha256_hex
from altdiffusion.storage.ledger import Unit, UnitRecord

# img2dataset's own messages, where its Resizer refuses a picture that passed our header check.
_RESIZER = {"image too small": "dims", "image area too large": "dims", "aspect ratio too large": "dims"}


def plan_download(links: Version, rows_per_unit: int) -> list[Unit]:
    """Units of a links version, in input order."""
    return plan_ranges(links, rows_per_unit)


@dataclass
class _Gate:
    """Stands in for img2dataset's `download_image_with_retry`: fetches, checks, remembers what its writer drops."""

    fetcher: Fetcher
    config: DownloadConfig
    sha256: dict[int, str] = field(default_factory=dict)
    refused: dict[int, Refused] = field(default_factory=dict)

    def __call__(self, row: tuple[int, str], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """(key, url) -> (key, stream or None, error or None), as img2dataset expects; called from many threads."""
        key, url = row
        try:
            body = self.fetcher.fetch(url).body
            picture = plain_image(body, inspect(body, self.config))
        except Refused as refused:
            self.refused[key] = refused
            return key, None, refused.reason
        self.sha256[key] = sha256_hex(body)
        return key, io.BytesIO(picture), None


class DownloadWork:
    """Works a row range of links. `aesthetic_score` comes from the scorer, in the same pass."""

    def __init__(
        self,
        *,
        lake: str,
        dataset: str,
        download: DownloadConfig,
        score: ScoreConfig | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.lake, self.dataset = lake, dataset
        self.download, self.score = download, score or ScoreConfig()
        self._resolver = resolver
        self._versions: dict[str, Version] = {}
        self._fetcher: Fetcher | None = None
        self._scorer: Scorer | None = None

    def setup(self) -> None:
        """Makes the fetcher and loads the scorer."""
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(self.download.max_pixels)
        self._fetcher = Fetcher(self.download, self._resolver)
        self._scorer = make_scorer(self.score)

    def run(self, unit: Unit) -> UnitRecord:
        """Downloads, resizes, scores and writes one unit."""
        if self._fetcher is None or self._scorer is None:
            raise RuntimeError("setup() has not been called")
        links = read_range(self.lake, unit, self._versions)
        gate = _Gate(fetcher=self._fetcher, config=self.download)
        with tempfile.TemporaryDirectory(prefix="altdiffusion-download-") as folder:
            images, reasons = _assemble(links, _download(links, gate, self.download, folder), gate, self.download)
        scores = self._scorer.score(images)
        images = images.set_column(images.column_names.index("aesthetic_score"), "aesthetic_score", scores)
        dropped = sorted(reasons)
        gone = links.take(pa.array(dropped, pa.int64()))
        rejects = rejects_table(
            unit.id,
            row=dropped,
            reason=[reasons[row][0] for row in dropped],
            sample_id=gone["sample_id"],
            url=gone["url"],
            language=gone["language"],
            detail=[reasons[row][1] or None for row in dropped],
        )
        return finish_unit(
            Lake(self.lake).dataset(self.dataset),
            unit,
            rows_in=links.num_rows,
            accepted=[images.cast(IMAGES)],
            rejects=rejects,
        )


def _download(links: pa.Table, gate: _Gate, config: DownloadConfig, folder: str) -> pa.Table:
    """Runs img2dataset's Downloader over the URLs; returns what its writer wrote, in order of arrival."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import ParquetSampleWriter

    shard = os.path.join(folder, "urls.feather")
    urls = links.select(["url"]).combine_chunks()
    with pa.OSFile(shard, "wb") as sink, pa.ipc.new_file(sink, urls.schema) as writer:
        writer.write_table(urls)
    downloader = _with_gate(Downloader, gate)(
        sample_writer_class=ParquetSampleWriter,
        resizer=Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.resize_only_if_bigger,
            encode_quality=config.encode_quality,
            encode_format=config.encode_format,
        ),
        thread_count=config.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=folder,
        column_list=["url"],
        timeout=config.deadline_s,
        number_sample_per_shard=max(links.num_rows, 2),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format=config.encode_format,
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        done, _ = downloader((0, shard))
    if not done:
        raise RuntimeError(f"img2dataset's Downloader failed: {said.getvalue()[-2000:]}")
    return pq.read_table(os.path.join(folder, "0.parquet"))


@functools.lru_cache(maxsize=1)
def _code(downloader: type) -> types.FunctionType:
    method: types.FunctionType = downloader.download_shard  # type: ignore[attr-defined]
    if "download_image_with_retry" not in _names(method.__code__):
        raise AltDiffusionError(
            "img2dataset", "does not call download_image_with_retry any more", "install the pinned version 1.47.0"
        )
    return method


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _with_gate(downloader: type, gate: _Gate) -> Any:
    """A subclass whose `download_shard` is img2dataset's own code, with our function under the name it calls."""
    method = _code(downloader)
    names = {**method.__globals__, "download_image_with_retry": gate}
    own = types.FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    return type("GuardedDownloader", (downloader,), {"download_shard": own})


def _assemble(
    links: pa.Table, written: pa.Table, gate: _Gate, config: DownloadConfig
) -> tuple[pa.Table, dict[int, tuple[str, str]]]:
    """Joins the links with what was written, in input order.

    Returns:
        images: IMAGES rows without scores.
        reasons: row -> (reason, detail) of all others.
    """
    keys = [int(key) for key in written["key"].to_pylist()]
    order = pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64())
    written = written.take(order)
    status, errors = written["status"].to_pylist(), written["error_message"].to_pylist()
    rows = sorted(keys)
    reasons = dict.fromkeys(set(range(links.num_rows)) - set(rows), ("decode", "img2dataset lost the row"))
    good = []
    for at, row in enumerate(rows):
        if status[at] == "success":
            good.append(at)
        elif row in gate.refused:
            reasons[row] = (gate.refused[row].reason, gate.refused[row].detail)
        else:
            message = str(errors[at])
            reasons[row] = (_RESIZER.get(message, "decode"), re.sub(r"\s+", " ", message)[:200])
    kept = written.take(pa.array(good, pa.int64()))
    kept_rows = [rows[at] for at in good]
    base = links.take(pa.array(kept_rows, pa.int64()))
    columns: dict[str, Any] = {name: base[name] for name in base.column_names}
    columns["image"] = kept[config.encode_format]
    columns["image_format"] = pa.array([config.encode_format] * len(good), pa.string())
    columns["image_sha256"] = pa.array([gate.sha256[row] for row in kept_rows], pa.string())
    for side in ("width", "height"):
        columns[f"original_{side}"] = kept[f"original_{side}"]
        columns[f"stored_{side}"] = kept[side]
    columns["aesthetic_score"] = pa.nulls(len(good), pa.float32())
    columns["hash_verdict"] = pa.nulls(len(good), pa.string())
    columns["phash"] = pa.repeat(0, len(good)).cast(pa.int64())
    return pa.table([columns[field.name].cast(field.type) for field in IMAGES], schema=IMAGES), reasons
