"""The simulated goodput against the closed forms of Young and Daly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.estimate.goodput import (
    FaultModel,
    best_interval_s,
    expected_goodput,
    simulate,
    young_interval_s,
)

DAY = 86_400.0
HARD = FaultModel(useful_s=40 * 3600, interval_s=1800, stall_s=60, write_s=60, restart_s=300, mean_s=3 * 3600)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"interval_s": 600.0},
        {"interval_s": 7200.0},
        {"mean_s": 3600.0, "interval_s": 900.0},
        {"restart_s": 0.0, "stall_s": 0.0, "write_s": 0.0},
        {"mean_s": 5 * DAY, "useful_s": 20 * DAY},
    ],
)
def test_the_simulation_agrees_with_the_closed_form(change: dict[str, float]) -> None:
    """With checkpoints that are durable when training goes on, the closed form is exact for whole intervals."""
    model = replace(HARD, **change)
    found = simulate(model, trials=4000, seed=1)
    assert abs(found.goodput - expected_goodput(model)) < 4 * found.error + 1e-9
    assert 0 < found.error < 0.01 and found.low <= found.goodput <= found.high
    assert abs(found.failures - found.total_s / model.mean_s) < 0.1 * found.failures + 0.1


def test_a_checkpoint_that_is_durable_later_acts_like_a_longer_restart() -> None:
    model = replace(HARD, stall_s=5, write_s=120, useful_s=400 * 1800)
    found = simulate(model, trials=2000, seed=2)
    later = replace(model, write_s=5, restart_s=model.restart_s + 115)
    assert math.isclose(expected_goodput(model), expected_goodput(later))
    assert abs(found.goodput - expected_goodput(model)) < 0.003


@pytest.mark.parametrize(("stall_s", "mean_s"), [(1, 5 * DAY), (60, 3 * 3600), (300, 3600), (900, 3600)])
def test_the_simulated_optimum_is_where_daly_says(stall_s: float, mean_s: float) -> None:
    """The goodput at the closed form's interval is the best of a scan, within the trials' error."""
    best = best_interval_s(stall_s, mean_s)
    base = replace(HARD, stall_s=stall_s, write_s=stall_s, mean_s=mean_s, restart_s=0.0)
    scan = best * np.geomspace(0.25, 4, 17)
    exact = [expected_goodput(replace(base, interval_s=one)) for one in scan]
    assert abs(expected_goodput(replace(base, interval_s=best)) - max(exact)) < 1e-3 * max(exact)
    model = replace(base, useful_s=200 * best)
    found = [simulate(replace(model, interval_s=one), trials=400, seed=3) for one in scan]
    top = max(found, key=lambda one: one.goodput)
    at = simulate(replace(model, interval_s=best), trials=400, seed=3)
    assert at.goodput > top.goodput - 3 * top.error - 1e-3


def test_intervals_of_young_and_daly() -> None:
    assert young_interval_s(10.0, 72_000.0) == 1200.0
    assert 1190 < best_interval_s(10.0, 72_000.0) < 1200  # shorter by the stall, longer by a third of it
    assert best_interval_s(100.0, 40.0) == 40.0


def test_a_failure_at_fixed_times_is_counted_exactly() -> None:
    """60 s per failure, 20 s to start again, 3 s steps with 1 s of stall: ten checkpoints per start but the first."""
    model = FaultModel(useful_s=60, interval_s=3, stall_s=1, write_s=1, restart_s=20, mean_s=60)
    found = simulate(model, periodic=True)
    # 15 checkpoints keep 45 s, then 5 checkpoints are left: 20 s of restart and 20 s
    assert found.failures == 1 and found.total_s == 60 + 20 + 20 and found.goodput == 0.6
    assert found.lost_s == 0


def test_one_seed_gives_one_answer_and_another_seed_another() -> None:
    assert simulate(HARD, trials=50, seed=7) == simulate(HARD, trials=50, seed=7)
    assert simulate(HARD, trials=50, seed=7) != simulate(HARD, trials=50, seed=8)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_run_that_never_ends_is_refused(periodic: bool) -> None:
    with pytest.raises(AltDiffusionError, match="of the time for steps that count") as error:
        simulate(replace(HARD, mean_s=200.0), periodic=periodic)
    assert "checkpoints more often" in error.value.remedy
