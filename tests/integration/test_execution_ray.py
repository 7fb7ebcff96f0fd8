"""The same work on Ray Data: equal results, bounded retries, errors in their own words. One embedded Ray for all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import capacity, cluster
from altdiffusion.execution.each_node import alive_nodes, on_each
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Pool, Resources, Unit, Unsettled
from altdiffusion.monitoring import record
from altdiffusion.monitoring.catalogue import CATALOGUE
from altdiffusion.monitoring.identity import Identity, adopt
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Ledger
from altdiffusion.storage.ledger_pages import read_ledger
from altdiffusion.storage.verification import damages_of
from tests import generation_lake
from tests.deploy.test_dashboard_and_alerts import OF_RAYLETS
from tests.failing_work import Counted, Failing, TwoOutputs
from tests.ray_folder import embedded_ray, ray_folder, scraped

ROOT = Path(__file__).resolve().parents[2]
POOL = Pool(min_size=1, max_size=2)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with embedded_ray():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Version]:
    lake = generation_lake.make_lake(tmp_path_factory.mktemp("ray"))
    return lake, generation_lake.generate(lake, generation_lake.config(lake), dataset="drawn")


def run(mode: str, units: Sequence[Unit], ledger: Ledger, **given: Any) -> None:
    """Run a work that fails in a certain way, by default on a pool of one worker."""
    run_units(Failing(mode), units, {"d": ledger}, backend="ray", progress=generation_lake.quiet(), **given)


def drop_ledger(lake: str) -> None:
    """Forget what was done, so that the next run of the same dataset does all of it."""
    import shutil

    for name in ("ledger", "shards", "versions", "images"):
        shutil.rmtree(Path(lake) / "datasets" / "drawn" / name)


def test_a_pool_makes_what_one_process_makes(ray_here: None, undisturbed: tuple[str, Version]) -> None:
    lake, expected = undisturbed
    drop_ledger(lake)
    made = generation_lake.generate(lake, generation_lake.config(lake), backend="ray", pool=POOL)
    assert made.ref == expected.ref
    assert damages_of(made) == []


def test_prometheus_finds_what_a_step_counts(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "REPEAT_S", 0.5)
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    ledgers = {name: Lake(str(tmp_path)).dataset(name).ledger("f") for name in ("counted", "other")}
    adopt(Identity(job="curate", run="seen", json=True))
    try:
        run_units(Counted(), units, ledgers, backend="ray", pool=POOL, progress=generation_lake.quiet("download"))
        for metric in CATALOGUE:  # every one is accepted by Ray, with the labels that are declared
            verb = {"gauge": record.set_to, "counter": record.add, "histogram": record.observe}[metric.kind]
            verb(metric, 7.0, **dict.fromkeys(metric.labels, "tried"))
        expected = {
            ("rows_read_total", "counted"): 6 * 5,
            ("rows_accepted_total", "counted"): 6 * 3,
            ("rows_rejected_total", "counted"): 6 * 2,
            ("bytes_written_total", "counted"): 6 * 100,
            ("units_done", None): 6,
            ("unit_seconds_count", None): 6,
        }
        wanted = {name for metric in CATALOGUE for name in metric.exported}
        deadline = time.monotonic() + 60
        while True:
            found = scraped()
            of_step = {key: found.get((f"ray_altdiffusion_{key[0]}", "download", key[1])) for key in expected}
            if (of_step == expected and wanted <= {name for name, _, _ in found}) or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        assert of_step == expected
        assert wanted <= {name for name, _, _ in found}
        time.sleep(3)  # after more than two intervals, Ray has forgotten a gauge that nothing repeats
        assert {name for name, _, _ in scraped(run=None)} >= OF_RAYLETS
        while ("ray_altdiffusion_units_done", "download", None) not in scraped():
            assert time.monotonic() < deadline + 60
            time.sleep(0.3)
    finally:
        adopt(Identity())


def printed_by_workers() -> list[dict[str, Any]]:
    """Return the lines that the work `Counted` printed, as the log files of Ray's workers have them."""
    files = Path(os.environ["RAY_TMPDIR"]).rglob("worker-*.out")
    lines = {line for file in files for line in file.read_text().splitlines() if '"message": "counting"' in line}
    return [line for line in map(json.loads, lines) if (line["job"], line["run"]) == ("curate", "seen")]


def test_killed_workers_change_nothing(ray_here: None, undisturbed: tuple[str, Version], tmp_path: Path) -> None:
    lake, expected = undisturbed
    drop_ledger(lake)
    deaths = tmp_path / "deaths"
    deaths.write_text("2")  # SIGKILL of the worker, twice, in the middle of a unit
    made = generation_lake.generate(lake, generation_lake.config(lake), backend="ray", pool=Pool(), deaths=str(deaths))
    assert deaths.read_text() == "0"
    assert made.ref == expected.ref


def test_a_unit_that_always_kills_its_worker_ends_the_job(ray_here: None, tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    with pytest.raises(AltDiffusionError) as caught:
        run("die", units, ledger)
    # Ray does not count a death that comes while it starts the worker again; then the number of tries ends the job.
    assert re.search(
        "worker processes died 3 times in a row|was begun 12 times by workers that were", str(caught.value)
    )
    assert "u3" in caught.value.what
    assert "u3" not in ledger.done_ids()
    run("none", units, ledger)
    assert ledger.done_ids() == {unit.id for unit in units}


@pytest.mark.parametrize("mode", ["user", "setup"])
def test_an_error_of_ours_arrives_as_it_was_raised(ray_here: None, tmp_path: Path, mode: str) -> None:
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    with pytest.raises(AltDiffusionError) as caught:
        run(mode, units, ledger, pool=POOL)
    assert str(caught.value) == f"thing of {mode}: is bad. Remedy: fix it"
    assert caught.value.__cause__ is None


def test_an_unsettled_unit_leaves_no_record_and_the_others_do(ray_here: None, tmp_path: Path) -> None:
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    with pytest.raises(Unsettled) as caught:
        run("unsure", units, ledger, pool=POOL)
    assert (caught.value.unit_id, caught.value.reasons) == ("1 unit", {"connect": 7})
    assert ledger.done_ids() == {"u0", "u1", "u2", "u4", "u5"}


def test_workers_make_only_the_missing_outputs_of_a_unit(ray_here: None, tmp_path: Path) -> None:
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    ledgers = {name: Lake(str(tmp_path)).dataset(name).ledger("f") for name in ("a", "b")}
    for name, of in (("a", units[:2]), ("b", units[1:3])):  # nothing is left to do for u1
        run_units(TwoOutputs(), of, {name: ledgers[name]}, backend="inline", progress=generation_lake.quiet())
    run_units(TwoOutputs(), units, ledgers, backend="ray", pool=POOL, progress=generation_lake.quiet())
    ids = [unit.id for unit in units]
    asked = {name: [one.input_digest for one in read_ledger(ledgers[name]).of_units(ids)] for name in ledgers}
    assert asked == {
        "a": ["a: a", "a: a", "a: a", *["a,b: a"] * 3],
        "b": ["b: b", "b: b", "b: b", *["a,b: b"] * 3],
    }


def test_a_defect_arrives_with_the_workers_traceback(ray_here: None, tmp_path: Path) -> None:
    units = [Unit(id=f"u{i}", index=i) for i in range(6)]
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    with pytest.raises(KeyError, match="oops") as caught:
        run("bug", units, ledger, pool=POOL)
    assert "failing_work.py" in caught.value.__notes__[0]


def test_a_worker_that_fits_nowhere_is_refused(ray_here: None, tmp_path: Path) -> None:
    ledger = Lake(str(tmp_path)).dataset("d").ledger("f")
    with pytest.raises(AltDiffusionError, match="a worker with GPU 1: does not fit on this machine, which has 0"):
        run("none", [Unit(id="u", index=0)], ledger, resources=Resources(num_gpus=1))


def divided(number: int, by: int) -> int:
    return number // by


def refuse(key: str) -> None:
    raise AltDiffusionError(f"key {key}", "is wrong", "fix it")


def test_a_call_gives_its_result_or_its_own_error(ray_here: None) -> None:
    assert cluster.call(divided, 17, 5, num_cpus=0.5) == 3
    with pytest.raises(AltDiffusionError, match=r"key x: is wrong. Remedy: fix it") as caught:
        cluster.call(refuse, "x")
    assert type(caught.value) is AltDiffusionError


def test_every_node_answers_or_is_named(ray_here: None) -> None:
    nodes = alive_nodes()
    assert len(nodes) == 1 and nodes[0].name == nodes[0].address
    assert on_each(nodes, divided, [(6, 3)], timeout_s=60) == [2]
    (raised,) = on_each(nodes, refuse, [("seed",)], timeout_s=60)
    assert isinstance(raised, AltDiffusionError) and raised.what == "key seed"
    (failed,) = on_each(nodes, divided, [(1, 0)], timeout_s=60)
    assert "failed (ZeroDivisionError" in str(failed) and nodes[0].name in str(failed)
    (hung,) = on_each(nodes, time.sleep, [(60,)], timeout_s=1)
    assert "did not answer within 1 s" in str(hung)


def test_a_killed_driver_loses_nothing(undisturbed: tuple[str, Version]) -> None:
    lake, expected = undisturbed
    drop_ledger(lake)
    script = (
        "import sys; from tests import generation_lake as g; from altdiffusion.execution import cluster;"
        "from altdiffusion.execution.units import Pool; cluster.connect(num_cpus=2);"
        "g.generate(sys.argv[1], g.config(sys.argv[1]), backend='ray', pool=Pool(min_size=1, max_size=2))"
    )
    with ray_folder() as folder:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"
        }  # fmt: skip
        driver = subprocess.Popen([sys.executable, "-c", script, lake], env=environment, cwd=folder)
        ledger = Path(lake) / "datasets" / "drawn" / "ledger"
        deadline = time.monotonic() + 120
        while len(list(ledger.glob("*/0*.json"))) < 2:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        done = len(list(ledger.glob("*/0*.json")))
        assert done < 8
    assert generation_lake.generate(lake, generation_lake.config(lake)).ref == expected.ref


@pytest.mark.parametrize("listening", [False, True])
def test_an_unreachable_address_is_reported_in_time(listening: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # a server that is not Ray's
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(AltDiffusionError) as caught:
            cluster.probe(address)
        assert time.monotonic() - started < 60
    assert caught.value.what == f"Ray address {address}"
    assert ("no Ray head answers" if listening else "unreachable") in caught.value.problem
    with pytest.raises(AltDiffusionError, match="not of the form host:port"):
        cluster.probe("head-node")


def test_nodes_are_asked_for_only_while_they_are_waited_for(ray_here: None) -> None:
    from ray.util import placement_group_table

    def states() -> list[tuple[str, float]]:
        groups = placement_group_table().values()
        return [(group["state"], group["bundles"][0].get("GPU", 0.0)) for group in groups]

    with capacity._demand(3, Resources(num_cpus=10, num_gpus=1)):
        assert ("PENDING", 1.0) in states()
    assert ("PENDING", 1.0) not in states()
