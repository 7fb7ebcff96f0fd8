"""The outbox: whole lines, no exception into training, every record once, whatever is killed or down."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.lineage import outbox as outboxes
from altdiffusion.lineage.job_folder import ShippingLock
from altdiffusion.lineage.outbox import MetricOutbox, OutboxReader, Record, Shipper


def drain(reader: OutboxReader) -> list[Record]:
    records: list[Record] = []
    while (chunk := reader.read()) is not None:
        records += chunk.records
        reader.commit(chunk.end)
    return records


class Receiver:
    """Takes records unless it is down."""

    def __init__(self) -> None:
        self.down = threading.Event()
        self.records: list[Record] = []
        self.largest = 0
        self.refused = 0

    def __call__(self, records: Sequence[Record]) -> None:
        if self.down.is_set():
            self.refused += 1
            raise ConnectionError("the server is down")
        self.largest = max(self.largest, len(records))
        self.records += records


def test_importing_the_outbox_imports_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, altdiffusion.lineage.outbox\n"
        "print([name for name in ('mlflow', 'torch', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True)
    assert done.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(outboxes.__file__).parents[2])}


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "deep/metrics.jsonl")
    outbox = MetricOutbox(path)
    reader = OutboxReader(path)
    assert reader.read() is None
    outbox.append(step=1, metrics={"loss": 0.5, "lr": 1e-4})
    outbox.append(step=2, metrics={"loss": math.nan, "bad": "no number", "norm": math.inf})  # type: ignore[dict-item]
    records = drain(reader)
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["metrics"] == {"loss": 0.5, "lr": 1e-4}
    assert math.isnan(records[1]["metrics"]["loss"]) and records[1]["metrics"]["norm"] == math.inf
    assert "bad" not in records[1]["metrics"]
    assert reader.read() is None and OutboxReader(path).read() is None  # the mark outlives the reader
    outbox.append(step=3, metrics={"loss": 0.25})
    assert [record["step"] for record in drain(OutboxReader(path))] == [3]


def test_an_append_takes_well_under_a_millisecond(tmp_path: Path) -> None:
    outbox = MetricOutbox(str(tmp_path / "metrics.jsonl"))
    metrics = {"loss": 0.123456, "lr": 1e-4, "grad_norm": 1.5, "images_per_s": 812.0}
    times = []
    for step in range(2000):
        start = time.perf_counter()
        outbox.append(step=step, metrics=metrics)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 500e-6  # about 15 microseconds on an idle machine


def test_a_full_disk_and_an_unusable_path_never_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    for path in (str(blocked / "metrics.jsonl"), "/dev/full"):
        outbox = MetricOutbox(path)
        outbox.append(step=1, metrics={"loss": 1.0})
        outbox.append(step=2, metrics={"loss": 1.0})
        outbox.sync()
        outbox.close()
        assert outbox.lost == 2
        warned, lost = caplog.messages  # once while it happens, once at the end
        assert "was dropped" in warned and "2 records, steps 1 to 2 (2 of loss) could not be written" in lost
        caplog.clear()


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    outbox = MetricOutbox(str(path))
    outbox.append(step=1, metrics={"loss": 1.0})
    outbox.close()
    with path.open("ab") as file:
        file.write(b'{"step":2,"time_ms":1,"metr')  # its writer was killed here
    reader = OutboxReader(str(path))
    assert [record["step"] for record in drain(reader)] == [1]
    outbox = MetricOutbox(str(path))
    outbox.append(step=3, metrics={"loss": 1.0})
    assert [record["step"] for record in drain(reader)] == [3]
    assert reader.damaged == 1


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import sys; from altdiffusion.lineage.outbox import MetricOutbox\n"
        "outbox = MetricOutbox(sys.argv[1])\n"
        "for step in range(int(sys.argv[2]), 10**9):\n"
        "    outbox.append(step=step, metrics={'loss': step * 0.5})\n"
        "    sys.stdout.write(f'{step}\\n'); sys.stdout.flush()\n"
    )
    acknowledged = 0
    for delay in (0.01, 0.05, 0.12):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(acknowledged + 1)],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().split("\n")]
        process.wait()
        whole = [line for line in lines if line.strip()]
        acknowledged = int(whole[-2] if len(whole) > 1 else whole[0])
    steps = [record["step"] for record in drain(OutboxReader(str(path)))]
    assert set(range(1, acknowledged + 1)) <= set(steps)


def test_a_step_that_is_trained_again_keeps_its_first_time(tmp_path: Path) -> None:
    """MLflow's key of a point holds its time: this is what makes an equal point of a resumed run the same point."""
    path = str(tmp_path / "metrics.jsonl")
    outbox = MetricOutbox(path)
    for step in (1, 2, 3):
        outbox.append(step=step, metrics={"loss": step / 2})
    outbox.close()
    time.sleep(0.01)
    resumed = MetricOutbox(path)
    for step in (2, 3, 4):
        resumed.append(step=step, metrics={"loss": step / 2})
    points = {(r["step"], r["time_ms"], r["metrics"]["loss"]) for r in drain(OutboxReader(path))}
    assert sorted(step for step, _, _ in points) == [1, 2, 3, 4]


def test_nothing_is_lost_or_repeated_through_an_outage(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    receiver = Receiver()
    outbox = MetricOutbox(path)
    shipper = Shipper(interval_s=0.02, max_wait_s=0.1)
    shipper.add(OutboxReader(path), receiver)
    for step in range(300):
        if step == 100:
            receiver.down.set()
        if step == 200:
            time.sleep(0.3)
            receiver.down.clear()
        outbox.append(step=step, metrics={"loss": float(step)})
        time.sleep(0.001)
    assert shipper.stop(10)
    assert [record["step"] for record in receiver.records] == list(range(300))
    assert receiver.refused >= 1


def test_an_outage_at_the_end_is_bounded_and_the_next_start_ships(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    receiver = Receiver()
    receiver.down.set()
    outbox = MetricOutbox(path)
    shipper = Shipper(interval_s=0.02)
    shipper.add(OutboxReader(path), receiver)
    for step in range(50):
        outbox.append(step=step, metrics={"loss": 1.0})
    start = time.monotonic()
    assert not shipper.stop(0.7)
    assert time.monotonic() - start < 60
    assert isinstance(shipper.last_error, ConnectionError)
    receiver.down.clear()
    again = Shipper()
    again.add(OutboxReader(path), receiver)
    assert again.stop(10)
    assert sorted({record["step"] for record in receiver.records}) == list(range(50))


def test_what_the_thread_holds_is_given_back_when_its_last_try_ends(tmp_path: Path) -> None:
    """That try may take its lock only after `stop` gave up: a slow machine, a server that does not answer."""
    path = str(tmp_path / "metrics.jsonl")
    MetricOutbox(path).append(step=1, metrics={"loss": 1.0})
    lock, trying, answers = ShippingLock(str(tmp_path)), threading.Event(), threading.Event()

    def send(records: Sequence[Record]) -> None:
        trying.set()
        assert answers.wait(60) and lock.take()
        raise ConnectionError("it does not answer")

    ended = threading.Event()

    def end() -> None:
        lock.release()
        ended.set()

    shipper = Shipper(ended=end)
    shipper.add(OutboxReader(path), send)
    assert trying.wait(60) and not shipper.stop(0.01) and not ended.is_set()
    answers.set()
    assert ended.wait(60) and ShippingLock(str(tmp_path)).take()


def test_memory_is_bounded_by_a_chunk_however_long_the_outage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "time_ms": 1, "metrics": {"loss": 0.5}}) + "\n"
    path.write_text(line * 100_000)  # 5.5 MB waiting, as one list of records about 60 MB
    counts: list[int] = []
    shipper = Shipper()
    tracemalloc.start()
    shipper.add(OutboxReader(str(path)), lambda records: counts.append(len(records)))
    assert shipper.stop(60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts) == 100_000
    assert peak < 8e6


def test_another_file_under_the_same_name_is_shipped_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    outbox = MetricOutbox(str(path))
    for step in range(10):
        outbox.append(step=step, metrics={"loss": 1.0})
    assert len(drain(OutboxReader(str(path)))) == 10
    outbox.close()
    path.unlink()
    MetricOutbox(str(path)).append(step=0, metrics={"loss": 1.0})
    assert len(drain(OutboxReader(str(path)))) == 1


@pytest.mark.parametrize("mark", [b"", b"{", b'{"offset": "x"}', b'{"offset": -5}', b'{"offset": 99999999}'])
def test_a_damaged_mark_means_shipping_again_not_failing(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricOutbox(str(path)).append(step=0, metrics={"loss": 1.0})
    Path(f"{path}.offset").write_bytes(mark)
    records: list[Any] = drain(OutboxReader(str(path)))
    assert len(records) == 1
