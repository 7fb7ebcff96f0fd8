"""How many prompts `altdiffusion promote` needs: the share of candidates that it promotes, by simulation.

    python -m benchmarks.promotion

18 languages, one image per prompt, a champion that is right at 90 % of the prompts; 5 % of the answers differ between
two equal models. The draws are keyed, so the table is the same each time.
"""

from __future__ import annotations

import numpy as np

from altdiffusion.evaluation.margins import ALPHA, MARGIN
from altdiffusion.evaluation.outcomes import Case, Outcomes
from altdiffusion.evaluation.retrieval_accuracy import no_worse
from altdiffusion.languages import CODES

RUNS = 100
RIGHT, MOVED = 0.9, 0.05


def _outcomes(right: np.ndarray) -> Outcomes:
    cases = [
        Case(concept=str(place), language=code, group="pictures") for code in CODES for place in range(right.shape[1])
    ]
    ids = [f"{case.concept}-{case.language}" for case in cases]
    return Outcomes(
        ids=ids, cases=cases, images=np.ones(len(ids), np.int64), right=right.reshape(-1).astype(np.float64)
    )


def _promoted(prompts: int, loss: float) -> float:
    """Return the share of candidates that pass, of which one language lost `loss`."""
    rng = np.random.Generator(np.random.Philox(key=prompts))
    passed = 0
    for _ in range(RUNS):
        before = rng.random((len(CODES), prompts)) < RIGHT
        up, down = MOVED / 2 / (1 - RIGHT), MOVED / 2 / RIGHT
        chance = np.where(before, 1 - down, up)
        chance[-1] = np.where(before[-1], 1 - down - loss / RIGHT, up)
        after = rng.random(before.shape) < chance
        tests = no_worse(_outcomes(before), _outcomes(after), MARGIN)
        passed += all(p <= ALPHA for p in tests.values())
    return passed / RUNS


def main() -> None:
    print(f"margin {100 * MARGIN:g} points, level {ALPHA:g}, {len(CODES)} languages, {RUNS} candidates each\n")
    print(f"{'prompts':>8} {'equal':>8} {'one lost 5':>11} {'one lost 10':>12}")
    for prompts in (64, 128, 256, 512, 1024):
        shares = [_promoted(prompts, loss) for loss in (0.0, 0.05, 0.1)]
        print(f"{prompts:>8} {shares[0]:>8.0%} {shares[1]:>11.0%} {shares[2]:>12.0%}", flush=True)


if __name__ == "__main__":
    main()
