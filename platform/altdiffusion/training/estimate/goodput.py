"""Which share of a run's time will be useful under failures: in closed form, and by simulation.

A run computes for `interval_s`, stops `stall_s` for a checkpoint, and computes again; a checkpoint is durable `write_s`
after it began. Failures of all workers together are a Poisson process: one of them stops the run, what was computed
since the newest durable checkpoint is lost, and the run continues after `restart_s`. Failures may also happen while it
starts again.

Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974); Daly, "A higher order estimate
of the optimum checkpoint interval for restart dumps", FGCS 22 (2006). `training.faults.goodput` measures the same share
of a run that took place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.splitmix import mix, splitmix64

Numbers = NDArray[np.float64]
TRIALS = 1000
_WORST = 0.01
"""Share below which a run is refused: it would hardly ever end."""
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class FaultModel:
    """A run and its failures. All values are in seconds and above 0, but `restart_s`, `stall_s` and `write_s` may be
    0."""

    useful_s: float
    """What the run's steps take without failures and checkpoints."""
    interval_s: float
    """Computing between two checkpoints."""
    stall_s: float
    """How long training stops for a checkpoint."""
    write_s: float
    """From the beginning of a checkpoint until it is durable, at least `stall_s`."""
    restart_s: float
    """From a failure until the run computes again: notice, new worker, load."""
    mean_s: float
    """Mean time between failures of all workers together."""

    @property
    def behind_s(self) -> float:
        """How long training runs on before a checkpoint is durable."""
        return max(0.0, self.write_s - self.stall_s)

    @property
    def segment_s(self) -> float:
        """Time from one checkpoint to the next."""
        return self.interval_s + self.stall_s


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What became of a run in a number of trials."""

    goodput: float
    """Useful time over all time, 0 to 1, summed over the trials."""
    error: float
    """Standard error of `goodput`."""
    low: float
    """Goodput that 95 % of the trials exceed."""
    high: float
    """Goodput that 5 % of the trials exceed."""
    failures: float
    """Failures per trial."""
    lost_s: float
    """Seconds of computing per trial that were done again."""
    total_s: float
    """Seconds per trial."""


def young_interval_s(stall_s: float, mean_s: float) -> float:
    """Return the interval that loses least to first order: sqrt(2 stall mean) (Young 1974)."""
    return math.sqrt(2 * stall_s * mean_s)


def best_interval_s(stall_s: float, mean_s: float) -> float:
    """Return the seconds of computing between checkpoints that lose least (Daly 2006)."""
    if stall_s >= 2 * mean_s:
        return mean_s
    root = stall_s / (2 * mean_s)
    return young_interval_s(stall_s, mean_s) * (1 + math.sqrt(root) / 3 + root / 9) - stall_s


def expected_goodput(model: FaultModel) -> float:
    """Return the goodput of a long run.

    It is Daly's interval / (mean e^(R / mean) (e^(segment / mean) - 1)). A checkpoint that becomes
    durable later than training goes on acts like a longer restart R: a start has to survive both to keep anything.
    """
    lost = (model.restart_s + model.behind_s) / model.mean_s
    segment = model.segment_s / model.mean_s
    if lost + segment > 700:
        return 0.0
    return model.interval_s / (model.mean_s * math.exp(lost) * math.expm1(segment))


def simulate(
    model: FaultModel,
    *,
    trials: int = TRIALS,
    seed: int = 0,
    periodic: bool = False,
    restarts_s: Sequence[float] = (),
) -> Simulated:
    """Return what becomes of a run in keyed trials, the same for one seed on every machine.

    Args:
        periodic: failures come at fixed times, one per `mean_s`, rather than by chance.
        restarts_s: what the first restarts take, as measured; later ones take `restart_s`.

    Raises:
        AltDiffusionError: the run would hardly come on, or never.
    """
    _check_progress(model, periodic)
    left = np.full(1 if periodic else trials, float(model.useful_s))
    total, lost, failures = np.zeros_like(left), np.zeros_like(left), np.zeros_like(left)
    running = np.arange(len(left))
    life = 0
    while len(running):
        until = np.full(len(running), model.mean_s) if periodic else _lives(model.mean_s, seed, running, life)
        restart = 0.0 if life == 0 else restarts_s[life - 1] if life <= len(restarts_s) else model.restart_s
        need = left[running]
        checkpoints = np.ceil(need / model.interval_s - _ROUNDING)
        whole = restart + need + checkpoints * model.stall_s + model.behind_s
        ends = until >= whole
        computed = np.maximum(until - restart, 0.0)
        durable = np.floor(np.maximum(computed - model.behind_s, 0.0) / model.segment_s + _ROUNDING)
        kept = np.minimum(durable * model.interval_s, need)
        begun = np.minimum(np.floor(computed / model.segment_s), checkpoints) * model.stall_s
        total[running] += np.where(ends, whole, until)
        lost[running] += np.where(ends, 0.0, np.maximum(np.minimum(computed - begun, need) - kept, 0.0))
        failures[running] += ~ends
        left[running] = np.where(ends, 0.0, need - kept)
        running = running[~ends]
        life += 1
    each = model.useful_s / total
    mean = float(total.mean())
    share = model.useful_s / mean
    return Simulated(
        goodput=share,
        error=share * float(total.std(ddof=1)) / mean / math.sqrt(len(total)) if len(total) > 1 else 0.0,
        low=float(np.quantile(each, 0.05)),
        high=float(np.quantile(each, 0.95)),
        failures=float(failures.mean()),
        lost_s=float(lost.mean()),
        total_s=mean,
    )


def _check_progress(model: FaultModel, periodic: bool) -> None:
    """Refuse a run that keeps next to nothing of what it computes."""
    if periodic:
        kept = math.floor((model.mean_s - model.restart_s - model.behind_s) / model.segment_s + _ROUNDING)
        share = max(kept, 0) * model.interval_s / model.mean_s
    else:
        share = expected_goodput(model)
    if share < _WORST:
        raise AltDiffusionError(
            f"a failure every {model.mean_s:,.0f} s, a checkpoint every {model.segment_s:,.0f} s and "
            f"{model.restart_s:,.0f} s to start again",
            f"leave {share:.1%} of the time for steps that count",
            "give fewer failures, or checkpoints more often, or a faster restart",
        )


def _lives(mean_s: float, seed: int, trials: NDArray[np.int64], life: int) -> Numbers:
    """Return the seconds until the next failure of each trial: exponential, keyed by seed, trial and life."""
    key = mix(np.array([seed % 2**64], dtype=np.uint64))
    words = splitmix64(mix(key ^ trials.astype(np.uint64)) ^ np.uint64(life))
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(-mean_s * np.log1p(-uniform))
