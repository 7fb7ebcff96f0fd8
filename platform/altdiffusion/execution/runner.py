"""Runs units that are not in the ledger yet, here or on Ray Data, and returns all records in unit order."""

from __future__ import annotations

import json
import pickle
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution import cluster
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.units import Backend, Pool, Resources, Unit, UnitWork, Unsettled
from altdiffusion.storage.documents import Document
from altdiffusion.storage.ledger import Ledger, UnitRecord, total

MAX_RETRIES = 2
"""How often a unit is tried again after its worker died."""
MAX_RESTARTS = 100
"""How often a worker of the pool is replaced; in days of work, nodes come and go regardless of the units."""
MAX_BLOCKS = 10_000
UNSETTLED_UNITS = 4
"""How many units in a row may be unsettled, or two per worker, before the job stops."""
UNSETTLED_ROWS = 128
"""The number of rows that must have been tried in them, since small units prove little."""


def run_units(
    work: UnitWork,
    units: Sequence[Unit],
    ledger: Ledger,
    *,
    backend: Backend,
    pool: Pool | None = None,
    resources: Resources | None = None,
    progress: Progress,
) -> list[UnitRecord]:
    """Run `units`; those that the ledger holds are not run again.

    Killed at any moment and run again with the same units, it returns the same records: a unit's record is written
    after its shards, by the worker that made them.

    Units that are `Unsettled` leave no record. They are tried once more each time others have been recorded, which
    ends: a turn in which none was recorded is the last one. Several of them in a row end it at once.

    Args:
        work: what to do; it travels to the workers by pickle.
        units: descriptors, with distinct ids.
        ledger: of the dataset and config fingerprint that the units belong to.
        backend: "inline" runs in this process, "ray" on a pool of workers (`cluster.connect` first).
        pool: how many workers; ignored inline.
        resources: what one worker takes; ignored inline.
        progress: shown while units run.

    Raises:
        AltDiffusionError: as raised by the work, or a worker process died again and again.
        Unsettled: of all units that stayed unsettled, or of those in a row.
    """
    if len({unit.id for unit in units}) != len(units):
        raise ValueError("unit ids are not distinct")
    known = ledger.all()
    records = {unit.id: known[unit.id] for unit in units if unit.id in known}
    pending = [unit for unit in units if unit.id not in records]
    progress.begin(len(units), len(records))
    pool = pool or Pool()
    in_a_row = max(UNSETTLED_UNITS, 2 * pool.max_size if backend == "ray" else 0)
    if pending and backend == "inline":
        work.setup()
    while pending:
        results = (
            _inline(work, pending, ledger)
            if backend == "inline"
            else _on_ray(work, pending, ledger, pool, resources or Resources())
        )
        unsettled: list[Unsettled] = []
        since: list[Unsettled] = []
        with progress:
            for result in results:
                if isinstance(result, Unsettled):
                    unsettled.append(result)
                    since.append(result)
                    if len(since) >= in_a_row and sum(one.rows for one in since) >= UNSETTLED_ROWS:
                        raise _together(since)
                    continue
                since = []
                records[result.unit_id] = result
                progress.advance(result.rows_in, result.rows_out)
        if unsettled and len(unsettled) == len(pending):
            raise _together(unsettled)
        open_ids = {one.unit_id for one in unsettled}
        pending = [unit for unit in pending if unit.id in open_ids]
    return [records[unit.id] for unit in units]


def _together(unsettled: Sequence[Unsettled]) -> Unsettled:
    return Unsettled(
        f"{len(unsettled)} unit{'s' * (len(unsettled) != 1)}",
        sum(one.rows for one in unsettled),
        sum(one.accepted for one in unsettled),
        total(one.reasons for one in unsettled),
    )


def _inline(work: UnitWork, units: Sequence[Unit], ledger: Ledger) -> Iterator[UnitRecord | Unsettled]:
    for unit in units:
        try:
            record = work.run(unit)
        except Unsettled as unsettled:
            yield unsettled
        else:
            yield ledger.record(record)


class UnitActor:
    """A worker of the Ray Data pool: loads its models once, then runs one unit after another.

    Rows in: {"unit": JSON text}; rows out: {"record": JSON text or None, "error": pickle or None}. An exception
    travels as a value: Ray would wrap it, and would count it as a failure of its own.
    """

    def __init__(self, work: UnitWork, ledger: Ledger) -> None:
        self._work = work
        self._ledger = ledger
        self._ready = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"record": [], "error": []}
        for text in batch["unit"]:
            try:
                out["record"].append(json.dumps(self._one(Unit(**json.loads(str(text)))).to_json()))
                out["error"].append(None)
            except Exception as error:
                out["record"].append(None)
                out["error"].append(_pack(error))
        return out

    def _one(self, unit: Unit) -> UnitRecord:
        done = self._ledger.get(unit.id)  # by the worker that died after recording, or by another driver
        if done is not None:
            return done
        if not self._ready:
            self._work.setup()
            self._ready = True
        return self._ledger.record(self._work.run(unit))


def _on_ray(
    work: UnitWork, units: Sequence[Unit], ledger: Ledger, pool: Pool, resources: Resources
) -> Iterator[UnitRecord | Unsettled]:
    if ledger.folder_uri.startswith("memory://"):
        raise AltDiffusionError(
            f"storage {ledger.folder_uri}",
            "is the memory of one process, but Ray has several",
            "use a folder or an object store, or the inline backend",
        )
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

    _check_capacity(resources)
    waiting = {unit.id: unit for unit in units}
    barren = 0
    while waiting:
        left = len(waiting)
        try:
            for record in _round(work, list(waiting.values()), ledger, pool, resources):
                del waiting[record.unit_id]
                yield record
        except GetTimeoutError:
            raise AltDiffusionError(
                f"the pool's {pool.min_size} workers",
                f"did not start within {cluster.START_TIMEOUT_S} s",
                "look at the cluster's free resources (`ray status`), or ask for a smaller pool",
            ) from None
        except RayError as error:
            # A node that went away, not a unit that kills its worker: what is left goes to a new pool.
            barren = barren + 1 if len(waiting) == left else 0
            if isinstance(error, ActorUnavailableError) and barren <= MAX_RETRIES:
                continue
            raise AltDiffusionError(
                f"{len(waiting)} unfinished units, {', '.join(sorted(waiting)[:3])} among the first",
                f"worker processes died {MAX_RETRIES + 1} times in a row ({first_line(error)})",
                "look for a lack of memory or a crash in native code, then run it again: finished units are kept",
            ) from None


def _round(
    work: UnitWork, units: Sequence[Unit], ledger: Ledger, pool: Pool, resources: Resources
) -> Iterator[UnitRecord | Unsettled]:
    """Yield the results of these units as they arrive, from one Ray Data plan."""
    import ray.data

    items = [{"unit": json.dumps({"id": u.id, "index": u.index, "payload": dict(u.payload)})} for u in units]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_restarts has no other way in than the one that warns, in Ray 2.60
        results = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            UnitActor,
            batch_size=1,
            batch_format="numpy",
            fn_constructor_kwargs={"work": work, "ledger": ledger},
            compute=ray.data.ActorPoolStrategy(
                min_size=min(pool.min_size, len(units)), max_size=min(pool.max_size, len(units))
            ),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
            memory=resources.memory_bytes or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RETRIES,
        )
    for row in results.iter_rows():
        if row["error"] is not None:
            yield _unpack(row["error"])
        else:
            yield UnitRecord.of_document(Document("a worker's record", json.loads(row["record"])))


def _check_capacity(resources: Resources) -> None:
    """Refuse a worker that does not fit into the embedded Ray: nothing scales up there, so it would wait for ever."""
    import ray

    if not cluster.is_embedded():
        return
    has = ray.cluster_resources()
    wanted = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": float(resources.memory_bytes)}
    for name, amount in wanted.items():
        if amount > has.get(name, 0.0):
            raise AltDiffusionError(
                f"a worker with {name} {amount:g}",
                f"does not fit on this machine, which has {has.get(name, 0.0):g}",
                "ask for less in the config's resources, or give the address of a cluster",
            )


def _pack(error: Exception) -> bytes:
    """Return the exception, pickled, with its traceback as a note; one that does not pickle becomes a RuntimeError."""
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
    """Return the unsettled unit that was packed; any other exception is raised."""
    error: Exception = pickle.loads(packed)  # made by our own worker, seconds ago
    error.__cause__ = None
    if isinstance(error, Unsettled):
        return error
    raise error
