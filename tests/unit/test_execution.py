"""Running units in this process, and the progress line."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.progress import Progress, duration
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Backend, Pool, Resources, Unit, UnitWork, Unsettled
from altdiffusion.records import PROMPTS
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.ledger_pages import read_ledger
from tests.failing_work import TwoOutputs


class Counting:
    """Counts its calls; fails at given units."""

    def __init__(self, fail_at: Sequence[int] = ()) -> None:
        self.fail_at = fail_at
        self.setups = 0
        self.ran: list[int] = []

    def setup(self) -> None:
        self.setups += 1

    def run(self, unit: Unit) -> UnitRecord:
        if unit.index in self.fail_at:
            raise AltDiffusionError(f"unit {unit.index}", "is bad", "fix it")
        self.ran.append(unit.index)
        return UnitRecord(unit_id=unit.id, index=unit.index, input_digest=str(unit.payload["of"]), rows_in=0)


UNITS = [Unit(id=f"u{i}", index=i, payload={"of": "0" * 64}) for i in range(6)]


def quiet() -> Progress:
    return Progress("test", stream=io.StringIO())


def run(work: UnitWork, units: Sequence[Unit], ledger: Ledger, backend: Backend = "inline") -> list[UnitRecord]:
    """Run units for one output, and return their records in order."""
    run_units(work, units, {"d": ledger}, backend=backend, progress=quiet())
    return list(read_ledger(ledger).of_units([unit.id for unit in units]))


def test_what_is_recorded_is_not_done_again(tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    first = Counting(fail_at=[4])
    with pytest.raises(AltDiffusionError, match="unit 4: is bad"):
        run(first, UNITS, ledger)
    second = Counting()
    records = run(second, UNITS, ledger)
    assert (first.ran, second.ran) == ([0, 1, 2, 3], [4, 5])
    assert [record.index for record in records] == [0, 1, 2, 3, 4, 5]
    third = Counting()
    assert run(third, UNITS, ledger) == records
    assert (third.setups, third.ran) == (0, [])


def test_records_of_other_units_in_the_ledger_are_left_out(tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    run(Counting(), UNITS, ledger)
    wanted = [UNITS[5], UNITS[2]]
    records = run(Counting(), wanted, ledger)
    assert [record.unit_id for record in records] == ["u5", "u2"]


def test_ids_must_be_distinct(tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    with pytest.raises(ValueError, match="not distinct"):
        run(Counting(), [UNITS[0]] * 2, ledger)


def test_ray_refuses_storage_that_only_one_process_sees() -> None:
    ledger = Lake("memory://lake").dataset("d").ledger("f")
    with pytest.raises(AltDiffusionError, match="memory of one process"):
        run(Counting(), UNITS, ledger, backend="ray")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(min_size=0),
        lambda: Pool(min_size=3, max_size=2),
        lambda: Resources(num_cpus=-1),
        lambda: Resources(num_cpus=0),
    ],
)
def test_invalid_pools_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=": is"):
        make()  # type: ignore[operator]


class Nothing(RangeWork):
    """A work that makes nothing from its rows."""

    def run(self, unit: Unit) -> UnitRecord:
        return finish_unit(self.output, unit, rows_in=0, accepted=[])


def test_ranges_cover_every_row_once_and_name_all_their_inputs(tmp_path: Path) -> None:
    dataset = Lake(str(tmp_path)).dataset("prompts")
    rows = [{"id": f"p{i}", "language": "en", "prompt": "x", "seed": i, "width": 8, "height": 8} for i in range(25)]
    shards = tuple(dataset.write_shard(pa.Table.from_pylist(part, schema=PROMPTS)) for part in (rows[:10], rows[10:]))
    record = UnitRecord(unit_id="u", index=0, input_digest="0" * 64, rows_in=25, shards=shards)
    version = dataset.publish(kind="prompts", records=[record], parents=[], config={}, fingerprint="f")
    units = plan_ranges(version, 4, "model a")
    assert [unit.index for unit in units] == list(range(7))
    work = Nothing(lake=str(tmp_path), dataset="nothing")
    read = pa.concat_tables([work.rows_of(unit) for unit in units])
    assert read["id"].to_pylist() == [row["id"] for row in rows]
    others = plan_ranges(version, 4, "model b")
    assert not {unit.id for unit in units} & {unit.id for unit in others}
    assert plan_ranges(version, 4, "model a") == units


def test_the_line_shows_what_is_left() -> None:
    stream = io.StringIO()
    progress = Progress("download", rows_name="images", stream=stream)
    progress.begin(40, 2)
    start = progress._started
    assert progress.line(start + 0.1) == "[download] 2/40 units  starting"
    assert progress.line(start + 12) == "[download] 2/40 units  starting, 0:00:12 so far"
    progress.advance(1234, units=10)
    assert progress.line(start + 10) == "[download] 12/40 units  1,234 images  123.4 images/s  0:00:28 left"
    progress.advance(500, kept=153, units=28)
    assert progress.line(start + 20) == "[download] 40/40 units  1,734 images  86.7 images/s  80.0% kept  in 0:00:20"
    progress.begin(3, 3)
    assert progress.line() == "[download] 3/3 units  nothing left to do"
    assert duration(3 * 3600 + 62) == "3:01:02"


def test_the_line_states_what_a_pool_waits_for_until_it_is_there() -> None:
    waits_for = ["waits for a node with CPU 1"]
    stream = io.StringIO()
    progress = Progress("generate", rows_name="images", stream=stream)
    progress.explain_start(lambda: waits_for[0])
    progress.begin(5)
    with progress:
        wait_for(lambda: "waits for" in progress.line())
        assert progress.line(progress._started + 9) == (
            "[generate] 0/5 units  starting, waits for a node with CPU 1, 0:00:09 so far"
        )
        waits_for[0] = ""
        wait_for(lambda: "waits for" not in progress.line())
    assert progress.line(progress._started + 9) == "[generate] 0/5 units  starting, 0:00:09 so far"


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_and_a_log_is_not_flooded() -> None:
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        progress = Progress("x", stream=stream)
        progress.begin(1000)
        with progress:
            for _ in range(1000):
                progress.advance(1)
    assert len(log.getvalue().splitlines()) == 2  # the first line and the last
    assert "1000/1000 units" in log.getvalue().splitlines()[-1]
    assert terminal.getvalue().startswith("\r[x] 0/1000")
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("\n")


def test_an_error_of_ours_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(AltDiffusionError("a", "b", "c")))
    assert (error.what, error.problem, error.remedy) == ("a", "b", "c")


class Killed(BaseException):
    """In place of SIGKILL: nothing in the code may catch it."""


@pytest.mark.parametrize("after", range(13))
def test_killed_between_the_records_of_two_outputs_only_the_missing_ones_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Six units leave twelve records; the process ends after any number of them."""
    ledgers = {name: Lake(str(tmp_path)).dataset(name).ledger("f") for name in ("a", "b")}
    written: list[tuple[str, str]] = []
    record = Ledger.record

    def dies(self: Ledger, one: UnitRecord) -> UnitRecord:
        if len(written) == after:
            raise Killed
        written.append((self.folder_uri.split("/")[-3], one.unit_id))
        return record(self, one)

    first, second = TwoOutputs(), TwoOutputs()
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(Ledger, "record", dies)
        run_units(first, UNITS, ledgers, backend="inline", progress=quiet())
    assert written == [(name, unit.id) for unit in UNITS for name in ("a", "b")][:after]
    run_units(second, UNITS, ledgers, backend="inline", progress=quiet())
    halves = [(after // 2, ("b",))] if after % 2 else []
    assert second.ran == [*halves, *((n, ("a", "b")) for n in range((after + 1) // 2, 6))]
    for name, ledger in ledgers.items():
        found = list(read_ledger(ledger).of_units([unit.id for unit in UNITS]))
        assert [one.input_digest.split()[-1] for one in found] == [name] * 6


def test_a_work_of_one_output_is_refused_for_two(tmp_path: Path) -> None:
    ledgers = {name: Lake(str(tmp_path)).dataset(name).ledger("f") for name in ("a", "b")}
    with pytest.raises(ValueError, match="shorter"):
        run_units(Counting(), UNITS, ledgers, backend="inline", progress=quiet())
    assert not any(ledger.done_ids() for ledger in ledgers.values())


def test_a_record_that_is_gone_is_named(tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    run(Counting(), UNITS, ledger)
    ledger.forget("u4")
    with pytest.raises(AltDiffusionError, match="no record of unit u4"):
        list(read_ledger(ledger).of_units([unit.id for unit in UNITS]))


class Unsure(Counting):
    """Units are unsettled until a number of others have been recorded."""

    def __init__(self, needs: Sequence[int], rows: int = 100) -> None:
        super().__init__()
        self.needs, self.rows, self.tried = needs, rows, 0

    def run(self, unit: Unit) -> UnitRecord:
        self.tried += 1
        if len(self.ran) < self.needs[unit.index]:
            raise Unsettled(unit.id, self.rows, 1, {"connect": self.rows - 1})
        return super().run(unit)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=8))
def test_unsettled_units_are_tried_again_as_long_as_others_are_recorded(needs: list[int]) -> None:
    """Ends whatever happens, records each unit once, and leaves none out that could have been recorded."""
    ledger = Lake(f"memory://unsettled-{uuid.uuid4()}").dataset("d").ledger("f")
    units = [Unit(id=f"u{i}", index=i, payload={"of": "0" * 64}) for i in range(len(needs))]
    work = Unsure(needs, rows=1)  # so few that a row of them does not end it
    settled = 0
    while any(need <= settled for need in sorted(needs)[settled : settled + 1]):
        settled += 1
    if settled == len(needs):
        records = run(work, units, ledger)
        assert [record.unit_id for record in records] == [unit.id for unit in units]
    else:
        with pytest.raises(Unsettled) as caught:
            run(work, units, ledger)
        assert caught.value.rows == len(needs) - settled
    assert sorted(work.ran) == sorted(set(work.ran)) and len(work.ran) == len(ledger.done_ids()) == settled
    assert work.tried <= len(needs) * (settled + 1) and work.setups == 1


def test_several_unsettled_units_in_a_row_end_it(tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    work = Unsure([0, 9, 9, 9, 9, 9])
    with pytest.raises(Unsettled) as caught:
        run(work, UNITS, ledger)
    assert (work.ran, work.tried, caught.value.unit_id) == ([0], 5, "4 units")
    assert (caught.value.rows, caught.value.accepted, caught.value.reasons) == (400, 4, {"connect": 396})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.unit_id, again.rows, again.reasons) == ("4 units", 400, {"connect": 396})
