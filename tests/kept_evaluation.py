"""A kept evaluation of five states in 18 languages with sweeps and measures, scored from simulated outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from altdiffusion.evaluation.outcomes import Case, outcomes_of
from altdiffusion.evaluation.retrieval_accuracy import score
from altdiffusion.languages import CODES
from altdiffusion.storage import evaluations

STATES = ("base", "swapped", "alignment", "quality", "guidance")
GUIDANCE = (1.0, 2.0, 3.0, 5.0, 9.0)
STEPS = (5, 10, 20, 50)
CONCEPTS = 64


def scored(name: str, share: float, codes: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the score of a set of images of which about a share is right."""
    random = np.random.Generator(np.random.Philox(key=seed))
    cases = {
        f"c{n}-{code}": Case(concept=f"c{n}", language=code, group="pictures" if n % 8 else "unseen")
        for n in range(CONCEPTS)
        for code in codes
    }
    hard = {code: 0.12 * math.sin(3 * place) for place, code in enumerate(codes)}
    named = [
        case.concept if random.random() < share + hard[case.language] * (1 - share) else "other"
        for case in cases.values()
    ]
    return score(name, outcomes_of(cases, dict.fromkeys(cases, 1), list(cases), np.array([named]))).to_json()


def measured(value: float, codes: Sequence[str], *, bare: bool = False) -> dict[str, Any]:
    """Return a measure's values around one, with intervals of 4 percent to either side unless `bare`."""

    def one(number: float) -> dict[str, Any]:
        return {"value": number, "low": None if bare else 0.96 * number, "high": None if bare else 1.04 * number,
                "rows": CONCEPTS}  # fmt: skip

    values = {code: value * (1 + 0.05 * math.sin(place)) for place, code in enumerate(codes)}
    return {"languages": {code: one(number) for code, number in values.items()}, "mean": one(value)}


def keep(lake: str, name: str = "night", codes: Sequence[str] = CODES, models: Mapping[str, str] | None = None) -> None:
    """Write the evaluation into a lake; its models are made up unless given by state."""
    shares = dict(zip(STATES, (0.05, 0.22, 0.61, 0.78, 0.9), strict=True))
    points, sets = [], dict(shares)
    for state in ("quality", "guidance"):
        for setting, letter, own, values in (("guidance_scale", "g", 9.0, GUIDANCE), ("steps", "s", 50, STEPS)):
            for place, value in enumerate(values):
                point = state if value == own else f"{state}-{letter}{value:g}"
                sets.setdefault(point, shares[state] * (0.55 + 0.45 * (place + 1) / len(values)))
                points.append({"name": point, "state": state, "setting": setting, "value": value})
    scores = {point: scored(point, share, codes, seed) for seed, (point, share) in enumerate(sets.items())}
    measures = {
        point: {
            "fid": measured(60 - 40 * share, codes, bare=True), "kid": measured(0.02 - 0.015 * share, codes),
            "clip_sim_native": measured(0.2 + 0.12 * share, codes), "retrieval@5": measured(0.9 * share, codes),
        }
        for point, share in sets.items()
    }  # fmt: skip
    report = {
        "level": 0.95, "chance": 1 / CONCEPTS, "states": [scores[state] for state in STATES],
        "controls": {"real pictures through the autoencoder": {"value": 0.98, "low": 0.9, "high": 1.0, "total": 64}},
        "sweep": {"points": points, "scores": [scores[point] for point in scores if point not in STATES]},
        "measures": {"level": 0.95, "about": {"resize": "clean to 299 pixels"}, "states": measures},
        "protocol": {
            "cases": "c" * 64, "sampling": {"sampler": "ddim", "steps": 50, "guidance_scale": 9.0, "dtype": "float16",
                                            "device": "cuda"},
        },
    }  # fmt: skip
    evaluations.write(lake, name, report, models or {state: f"{place:064x}" for place, state in enumerate(STATES)})
