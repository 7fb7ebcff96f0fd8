"""Runs the units that a ledger lacks, in this process or on Ray Data, and records them."""

from __future__ import annotations

import functools
import json
import pickle
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution import attempts, cluster
from altdiffusion.execution.capacity import check_capacity, have, lacking, named
from altdiffusion.execution.folding import Folding
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.unit_metrics import Finished, OutputCounts, UnitMetrics
from altdiffusion.execution.units import Backend, MultiOutputWork, Pool, Resources, SpillingWork, Unit, Unsettled, Work
from altdiffusion.monitoring.identity import identity, making
from altdiffusion.monitoring.json_logs import begin_worker
from altdiffusion.storage.ledger import Ledger, UnitRecord, total

MAX_RETRIES = 2
"""How often a unit is handed out again after its worker died."""
MAX_RESTARTS = 100
"""How often one place of the pool is filled again: nodes come and go in days of work, whatever the units do."""
MAX_BLOCKS = 10_000
UNSETTLED_UNITS = 4
"""Number of unsettled units in a row, or two per worker if that is more, after which the job may stop."""
UNSETTLED_ROWS = 128
"""Number of rows that must have been tried in them, because a few rows prove little."""

Ledgers = Mapping[str, Ledger]
"""The ledger of each output that is wanted, by the name of its dataset."""


def run_units(
    work: Work,
    units: Sequence[Unit],
    ledgers: Ledgers,
    *,
    backend: Backend,
    pool: Pool | None = None,
    resources: Resources | None = None,
    progress: Progress,
) -> None:
    """Run units until every ledger has a record of each of them; what is recorded is not made again.

    A unit's records are written after its shards, by the worker that made them. Killed at any moment and started again
    with the same units, the ledgers end with the same records.

    Units that are `Unsettled` leave no record. They are tried again after each turn in which others were recorded; a
    turn in which none was recorded is the last one. Several of them in a row end the work at once.

    Args:
        work: what to do; it travels to the workers by pickle.
        units: descriptions with distinct ids.
        ledgers: one ledger per output, each of the config fingerprint that the units belong to. A work with one output
            needs exactly one.
        backend: "inline" runs in this process, "ray" on a pool of workers (`cluster.connect` first).
        pool: number of workers; ignored inline.
        resources: what one worker takes; ignored inline.
        progress: shown while units run.

    Raises:
        AltDiffusionError: raised by the work, or worker processes died several times in a row.
        Unsettled: the sum of all units that stayed unsettled, or of those in a row.
    """
    if len({unit.id for unit in units}) != len(units):
        raise ValueError("unit ids are not distinct")
    done = set.intersection(*(ledger.done_ids() for ledger in ledgers.values()))
    pending = [unit for unit in units if unit.id not in done]
    progress.begin(len(units), len(units) - len(pending))
    pool, resources = pool or Pool(), resources or Resources()
    in_a_row = max(UNSETTLED_UNITS, 2 * pool.max_size if backend == "ray" else 0)
    worker, metrics = Worker(work, ledgers), UnitMetrics(progress.step)
    metrics.begin(len(units), len(units) - len(pending))
    if backend == "ray":
        progress.explain_start(functools.partial(lacking, resources, pool.min_size))
    while pending:
        results = (
            _inline(worker, pending) if backend == "inline" else _on_ray(worker, pending, pool, resources, metrics)
        )
        unsettled: list[Unsettled] = []
        since: list[Unsettled] = []
        with progress, Folding(ledgers.values(), len(units) - len(pending)) as folding:
            for result in _counting_errors(results, metrics):
                if isinstance(result, Unsettled):
                    metrics.failed("unsettled")
                    unsettled.append(result)
                    since.append(result)
                    if len(since) >= in_a_row and sum(one.rows for one in since) >= UNSETTLED_ROWS:
                        raise _together(since)
                    continue
                since = []
                progress.advance(result.rows_in, result.rows_out)
                metrics.finished(result)
                folding.advance()
        if unsettled and len(unsettled) == len(pending):
            raise _together(unsettled)
        open_ids = {one.unit_id for one in unsettled}
        pending = [unit for unit in pending if unit.id in open_ids]


def _counting_errors(results: Iterator[Finished | Unsettled], metrics: UnitMetrics) -> Iterator[Finished | Unsettled]:
    try:
        yield from results
    except Exception:
        metrics.failed("error")
        raise


def _together(unsettled: Sequence[Unsettled]) -> Unsettled:
    return Unsettled(
        f"{len(unsettled)} unit{'s' * (len(unsettled) != 1)}",
        sum(one.rows for one in unsettled),
        sum(one.accepted for one in unsettled),
        total(one.reasons for one in unsettled),
    )


class Worker:
    """One process that finishes units: it sets the work up before its first unit, and writes the ledgers."""

    def __init__(self, work: Work, ledgers: Ledgers) -> None:
        self.ledgers = dict(ledgers)
        self.identity = identity()
        """That of the driver, which a worker's process adopts."""
        self._work = work
        self._spills = work if isinstance(work, SpillingWork) else None  # once: a protocol is slow to look at
        self._several = work if isinstance(work, MultiOutputWork) else None
        self._single = None if isinstance(work, MultiOutputWork) else work
        self._ready = False

    def finish(self, unit: Unit) -> Finished:
        """Make what the ledgers lack of a unit, and record it in the order of the outputs.

        A kill between two records loses nothing: the unit then runs again for the remaining outputs alone.
        """
        began = time.perf_counter()
        records = {name: ledger.get(unit.id) for name, ledger in self.ledgers.items()}
        missing = [name for name, record in records.items() if record is None]
        with making(unit.id):
            if missing and not self._ready:
                self._work.setup()
                self._ready = True
                began = time.perf_counter()  # loading models is not a part of the unit
            for name, made in self._run(unit, missing).items():
                records[name] = self.ledgers[name].record(made)
            if self._spills is not None:
                self._spills.recorded(unit)
        known = {name: record for name, record in records.items() if record is not None}
        (first, *others) = known.values()
        return Finished(
            unit.id,
            first.rows_in,
            None if others else first.rows_out,
            time.perf_counter() - began,
            tuple(OutputCounts.of(name, known[name]) for name in missing),
        )

    def _run(self, unit: Unit, outputs: Sequence[str]) -> dict[str, UnitRecord]:
        if not outputs:  # recorded by a worker that died since, or by another driver
            return {}
        if self._single is not None:
            made: Sequence[UnitRecord] = [self._single.run(unit)]
        else:
            assert self._several is not None
            made = self._several.run_outputs(unit, outputs)
        return dict(zip(outputs, made, strict=True))


def _inline(worker: Worker, units: Sequence[Unit]) -> Iterator[Finished | Unsettled]:
    for unit in units:
        try:
            finished = worker.finish(unit)
        except Unsettled as unsettled:
            yield unsettled
        else:
            yield finished


class UnitActor:
    """A worker of the Ray Data pool.

    Rows in: {"unit": JSON text}; rows out: {"finished": JSON text or None, "error": pickle or None}. An exception
    travels as a value, because Ray would wrap it and count it as a failure of its own.
    """

    def __init__(self, worker: Worker, run: str) -> None:
        begin_worker(worker.identity)
        self._worker, self._run = worker, run

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"finished": [], "error": []}
        for text in batch["unit"]:
            try:
                unit = Unit(**json.loads(str(text)))
                attempts.count(self._run, unit.id)
                out["finished"].append(json.dumps(self._worker.finish(unit).to_json()))
                out["error"].append(None)
            except Exception as error:
                out["finished"].append(None)
                out["error"].append(_pack(error))
        return out


def _on_ray(
    worker: Worker, units: Sequence[Unit], pool: Pool, resources: Resources, metrics: UnitMetrics
) -> Iterator[Finished | Unsettled]:
    for ledger in worker.ledgers.values():
        if ledger.folder_uri.startswith("memory://"):
            raise AltDiffusionError(
                f"storage {ledger.folder_uri}",
                "is the memory of one process, but Ray has several",
                "use a folder or an object store, or the inline backend",
            )
    check_capacity(resources)
    run = uuid.uuid4().hex
    try:
        yield from _rounds(worker, units, pool, resources, run, metrics)
    finally:
        attempts.forget(run)


def _rounds(
    worker: Worker, units: Sequence[Unit], pool: Pool, resources: Resources, run: str, metrics: UnitMetrics
) -> Iterator[Finished | Unsettled]:
    """Yield the result of each unit; units that a lost pool leaves go to a new one."""
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

    waiting = {unit.id: unit for unit in units}
    barren = 0
    while waiting:
        left = len(waiting)
        try:
            for result in _round(worker, list(waiting.values()), pool, resources, run):
                del waiting[result.unit_id]
                yield result
        except GetTimeoutError:
            raise AltDiffusionError(
                f"the pool's {pool.min_size} workers with {named(resources)} each",
                f"did not start within {cluster.wait_for_nodes_s():g} s ({have(pool.min_size, resources)})",
                "look at the cluster's free resources (`ray status`), ask for a smaller pool, or raise "
                "execution.wait_for_nodes_s",
            ) from None
        except RayError as error:
            # A node went away, which is not the fault of a unit: the remaining units go to a new pool.
            metrics.failed("worker_lost")
            barren = barren + 1 if len(waiting) == left else 0
            if isinstance(error, ActorUnavailableError) and barren <= MAX_RETRIES:
                continue
            raise AltDiffusionError(
                f"{len(waiting)} unfinished units, {', '.join(sorted(waiting)[:3])} among the first",
                f"worker processes died {MAX_RETRIES + 1} times in a row ({first_line(error)})",
                "look for a lack of memory or a crash in native code, then run it again: finished units are kept",
            ) from None


def _round(
    worker: Worker, units: Sequence[Unit], pool: Pool, resources: Resources, run: str
) -> Iterator[Finished | Unsettled]:
    """Yield the result of each of these units from one Ray Data plan, in the order in which they end."""
    import ray.data

    items = [{"unit": json.dumps({"id": u.id, "index": u.index, "payload": dict(u.payload)})} for u in units]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 accepts max_restarts only in a way that warns
        results = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            UnitActor,
            batch_size=None,  # a block: Ray hands its results on together in any case
            batch_format="numpy",
            fn_constructor_kwargs={"worker": worker, "run": run},
            compute=ray.data.ActorPoolStrategy(
                min_size=min(pool.min_size, len(units)), max_size=min(pool.max_size, len(units))
            ),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
            memory=resources.memory_bytes or None,
            resources=dict(resources.custom) or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RETRIES,
        )
    for row in results.iter_rows():
        if row["error"] is not None:
            yield _unpack(row["error"])
        else:
            yield Finished.from_json(json.loads(row["finished"]))


def _pack(error: Exception) -> bytes:
    """Return the pickled exception with its traceback as a note; one that cannot be pickled becomes a RuntimeError."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, AltDiffusionError | Unsettled):
        error.add_note(f"in a worker:\n{trace}")
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(f"in a worker:\n{trace}")
        data = pickle.dumps(plain)
    return data


def _unpack(packed: bytes) -> Unsettled:
    """Return the packed `Unsettled`, or raise any other exception that was packed."""
    error: Exception = pickle.loads(packed)  # written by our own worker, seconds ago
    error.__cause__ = None
    if isinstance(error, Unsettled):
        return error
    raise error
