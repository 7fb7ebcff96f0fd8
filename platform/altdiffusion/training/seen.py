"""Which samples a checkpoint has seen, and how often: computed from its run's order, not remembered.

Batch n is a pure function of the datasets, the run's key, the seed and n (`order`), so the answer for a checkpoint at
step n is exact: whole epochs count every row once, and only the epoch that was begun has to be enumerated.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCHEMAS
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.erased import ErasedVersion, open_or_erased
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order.batches import Order
from altdiffusion.training.order.language_rows import language_rows
from altdiffusion.training.order.mixture import Source, make_order, sources_of
from altdiffusion.training.order.permutation import I64
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.order.skips import Windows, batch_at, merged
from altdiffusion.training.run.record import config_of, read_record

_COLUMNS = ("sample_id", "image_sha256", "language", "caption")
SEEN = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=True),
        pa.field("language", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("times", pa.int32(), nullable=False),
    ]
)
"""One row per sample that was seen at least once; a pair of texts has no image."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one run up to one step has seen of one dataset."""

    run: str
    steps: int
    version: Version
    times: I64
    """[rows of the version] how often each row was in a batch; 8 bytes per row."""

    @property
    def samples(self) -> int:
        return int(self.times.sum())

    @property
    def distinct(self) -> int:
        return int(np.count_nonzero(self.times))

    @property
    def is_erased(self) -> bool:
        """Whether the rows of the dataset were erased, so that only counts are left."""
        return isinstance(self.version, ErasedVersion)

    def tables(self) -> Iterator[pa.Table]:
        """Yield SEEN rows, shard by shard."""
        starts = self.version.shard_starts
        names = [name for name in _COLUMNS if name in SCHEMAS[self.version.manifest.kind].names]
        for number, table in enumerate(self.version.iter_tables(names)):
            times = self.times[starts[number] : starts[number + 1]]
            kept = np.flatnonzero(times)
            rows = table.take(pa.array(kept))
            columns: dict[str, Any] = {"image_sha256": pa.nulls(len(kept), pa.string())}
            columns |= {name: rows[name] for name in names}
            columns["run"] = pa.repeat(self.run, len(kept))
            columns["dataset"] = pa.repeat(str(self.version.ref), len(kept))
            columns["row"] = pa.array(kept + starts[number])
            columns["times"] = pa.array(times[kept].astype(np.int32))
            yield pa.table([columns[field.name] for field in SEEN], schema=SEEN)

    def by_language(self) -> dict[str, int]:
        """Return the samples of each language, repetitions counted."""
        if self.is_erased:
            known = language_rows(self.version).items()
            counts = {language: int(self.times[rows].sum()) for language, rows in known}
            return {language: count for language, count in sorted(counts.items()) if count}
        found: Counter[str] = Counter()
        for table in self.tables():
            sums = table.group_by("language").aggregate([("times", "sum")])
            found.update(dict(zip(sums["language"].to_pylist(), sums["times_sum"].to_pylist(), strict=True)))
        return dict(sorted(found.items()))


def seen(lake: str, run: str, step: int | None = None, *, digest: str = "") -> list[Seen]:
    """Return what a checkpoint's run has seen, then what the runs before it had seen, nearest first: those whose
    checkpoints it was started from, and the distillation whose student it reads.

    Args:
        step: the checkpoint's step; None is the newest verified one.
        digest: beginning of the checkpoint's digest, which is compared; empty is any.

    Raises:
        AltDiffusionError: there is no such run or checkpoint, or a dataset of it is not in the lake.
    """
    return [part for past in pasts_of(lake, open_checkpoint(lake, run, step, digest=digest)) for part in _of(past)]


def open_checkpoint(lake: str, run: str, step: int | None = None, *, digest: str = "") -> Checkpoint:
    """Return the checkpoint that a question is about, verified; `seen` describes the arguments.

    Raises:
        AltDiffusionError: there is no such run or checkpoint.
    """
    found = checkpoints.open_step(lake, run, step) if step is not None else checkpoints.latest_intact(lake, run)
    if found is None or read_record(lake, run) is None:
        raise AltDiffusionError(
            f"run {run}", f"has no checkpoint in {lake}", f"runs here: {checkpoints.known_runs(lake)}"
        )
    found.check_digest(digest)
    return found


@dataclass(frozen=True, kw_only=True)
class Past:
    """One run up to one step: its datasets, its order, and the batches that it left out."""

    at: Checkpoint
    versions: tuple[Version, ...]
    """Datasets, as the config lists them; one may be named twice."""
    sources: tuple[Source, ...]
    """What each part of the order draws from."""
    order: Order
    skips: Windows

    @property
    def end(self) -> int:
        """One after the last batch of the checkpoint's steps."""
        return batch_at(self.skips, self.at.step - 1) + 1


class Records:
    """What decides the order of each run of a lake, read once per run, however many of its checkpoints are in question.

    That a run has no record, or a damaged one, is remembered too.
    """

    def __init__(self, lake: str) -> None:
        self._lake = lake
        self._known: dict[str, dict[str, Any] | AltDiffusionError] = {}
        self._order = functools.lru_cache(maxsize=64)(self._read_order)

    def record(self, run: str) -> dict[str, Any]:
        """Return the run.json of a run.

        Raises:
            AltDiffusionError: it is not in the lake, or is damaged.
        """
        if run not in self._known:
            try:
                self._known[run] = _whole_record(self._lake, run)
            except AltDiffusionError as error:
                self._known[run] = error
        known = self._known[run]
        if isinstance(known, AltDiffusionError):
            raise known
        return known

    def past(self, at: Checkpoint) -> Past:
        """Return a checkpoint's run up to it.

        Raises:
            AltDiffusionError: the record of the run or a dataset is not in the lake, or is damaged.
        """
        config, versions, order = self._order(at.run)
        return Past(
            at=at,
            versions=versions,
            sources=tuple(sources_of(config, versions)),
            order=order,
            skips=merged([*config.guards.skip_batches, *at.state().get("skipped_batches", [])]),
        )

    def _read_order(self, run: str) -> tuple[TrainConfig, tuple[Version, ...], Order]:
        record = self.record(run)
        config, key = config_of(record), RunKey.read(record, f"run.json of run {run}")
        versions = tuple(open_or_erased(Lake(self._lake), ref) for ref in record["datasets"])
        return config, versions, make_order(config, versions, key)


def pasts_of(
    lake: str,
    at: Checkpoint,
    open_: Callable[[str, Ref], Checkpoint] | None = None,
    records: Records | None = None,
) -> Iterator[Past]:
    """Yield a checkpoint's run up to it, then the runs before it, nearest first.

    Args:
        open_: opens the earlier checkpoints; by default they are verified.
        records: what is known of the lake's runs, where this is asked for many checkpoints.

    Raises:
        AltDiffusionError: a record, a checkpoint or a dataset of these runs is not in the lake, or is damaged.
    """
    waiting, known_refs = [at], {at.ref}
    records = records or Records(lake)
    while waiting:
        one = waiting.pop(0)
        record = records.record(one.run)
        yield records.past(one)
        for text in (record["start"], record["student"]):
            ref = Ref.parse(text) if text is not None else None
            if ref is not None and ref not in known_refs:  # later stages name the same student again
                known_refs.add(ref)
                waiting.append((open_ or _verified)(lake, ref))


def _verified(lake: str, ref: Ref) -> Checkpoint:
    found = checkpoints.open_step(lake, *checkpoints.run_and_step(ref))
    found.check_digest(ref.digest)
    return found


class NoRecordError(AltDiffusionError):
    """The lake has no run.json of a run, so that its datasets are not known."""


def _whole_record(lake: str, run: str) -> dict[str, Any]:
    record = read_record(lake, run)
    if record is None:
        raise NoRecordError(f"run {run}", f"has no run.json in {lake}", "restore it: it names the datasets")
    if "student" not in record:
        raise AltDiffusionError(
            f"run.json of run {run}",
            "is of an earlier version: it does not name the checkpoint of its student",
            'add "student": that checkpoint as lineage.json of the text encoder has it, or null if it has none',
        )
    return record


def _of(past: Past) -> list[Seen]:
    opened = {version.ref: version for version in past.versions}
    found = {ref: np.zeros(version.rows, np.int64) for ref, version in opened.items()}
    for source, counts in zip(past.sources, _times(past), strict=True):
        _add(found, source, counts)
    return [Seen(run=past.at.run, steps=past.at.step, version=opened[ref], times=times) for ref, times in found.items()]


def _times(past: Past) -> list[I64]:
    """Return how often each row of each source was in the batches of a checkpoint's steps."""
    order, end = past.order, past.end
    times = order.times(end)
    for first, after in past.skips:
        if first < end:
            for counts, before, until in zip(times, order.times(first), order.times(after), strict=True):
                counts -= until - before
    return times


def _add(found: Mapping[Ref, I64], source: Source, counts: I64) -> None:
    """Add the counts of a source's rows to those of its versions' rows."""
    begin = 0
    for version in source.versions:
        if source.language is None:
            found[version.ref][:] += counts[begin : begin + version.rows]
            begin += version.rows
        elif version.manifest.rows_by_language.get(source.language):
            numbers = language_rows(version)[source.language]
            found[version.ref][numbers] += counts[begin : begin + len(numbers)]
            begin += len(numbers)


def write_seen(parts: Sequence[Seen], path: str) -> None:
    """Write the SEEN rows of all parts to one local Parquet file.

    Raises:
        AltDiffusionError: the file cannot be written.
    """
    for part in parts:
        if part.is_erased:
            raise AltDiffusionError(
                part.version.ref.short,
                "was erased: how often its rows were seen is known, but not which rows they were",
                "leave --out out; what was taken down is in the counts",
            )
    try:
        with pa.OSFile(path, "wb") as sink, pq.ParquetWriter(sink, SEEN) as writer:
            for part in parts:
                for table in part.tables():
                    writer.write_table(table)
    except OSError as error:
        raise AltDiffusionError(f"file {path}", f"cannot be written ({error})", "choose another path") from error
