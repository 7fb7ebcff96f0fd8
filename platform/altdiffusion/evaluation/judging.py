"""The judges at work: the images of every state are named, and the answers become a report.

Shapes: J judges, M images, S = judge.SIDE pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.evaluation import retrieval_accuracy
from altdiffusion.evaluation.judge import Judge, train_judge
from altdiffusion.evaluation.judge_images import labelled_images, small_images, through_autoencoder
from altdiffusion.evaluation.outcomes import Case, Outcomes, outcomes_of
from altdiffusion.evaluation.statistics import Rate
from altdiffusion.evaluation.table import Report
from altdiffusion.storage.dataset import Version


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Judges of several seeds that were trained on the same real images."""

    judges: Mapping[int, Judge]
    """By seed."""
    names: NDArray[np.str_]
    """The concept of each of the judges' classes."""
    real: NDArray[np.uint8]
    """[N, S, S, 3] what they were trained on."""
    shown: NDArray[np.str_]
    """[N] the concept that each of these images shows."""

    @classmethod
    def train(cls, images: Version, labels_uri: str, seeds: Sequence[int], steps: int) -> Panel:
        """Train one judge per seed on the labelled images of a version; it raises as `labelled_images`."""
        real, shown = labelled_images(images, labels_uri)
        names, labels = np.unique(shown, return_inverse=True)
        print(f"[judge] trained on {len(real)} real images of {len(names)} concepts", flush=True)
        judges = {seed: train_judge(real, labels.astype(np.int64), seed, steps=steps) for seed in seeds}
        return cls(judges=judges, names=names, real=real, shown=shown)

    def name(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the concept that each judge names in each image [M, S, S, 3], as [J, M]."""
        return np.stack([self.names[judge.predict(images)] for judge in self.judges.values()])

    def name_version(self, version: Version) -> tuple[list[str], NDArray[Any]]:
        """Return the prompt's id of each image of a version, and what the judges name, [J, M].

        The images of one shard are held at a time.
        """
        ids: list[str] = []
        named = [np.empty((len(self.judges), 0), self.names.dtype)]
        for rows in version.iter_tables(["id", "image"]):
            ids += rows["id"].to_pylist()
            named.append(self.name(small_images(rows["image"].to_pylist())))
        return ids, np.concatenate(named, axis=1)


def judged(
    panel: Panel, drawn: Mapping[str, Version], cases: Mapping[str, Case], images: Mapping[str, int], autoencoder: str
) -> tuple[Report, dict[str, Outcomes]]:
    """Return the report on all states, and the outcomes of each.

    Args:
        drawn: the images of each state, in the order of the recipe.
        cases: by the prompt's id.
        images: number of images that were asked for, by the prompt's id.
        autoencoder: folder of the VAE through which a control shows real images.
    """
    codec = panel.name(through_autoencoder(autoencoder, panel.real)) == panel.shown
    controls = {"real pictures through the autoencoder": retrieval_accuracy.rate_of(codec.mean(axis=0), panel.shown)}
    outcomes: dict[str, Outcomes] = {}
    by_judge: dict[int, dict[str, Rate]] = {seed: {} for seed in panel.judges}
    for state, version in drawn.items():
        ids, named = panel.name_version(version)
        outcomes[state] = outcomes_of(cases, images, ids, named)
        asked = [cases[name] for name in ids]
        wanted = np.array([case.concept for case in asked])
        for rates, answers in zip(by_judge.values(), named, strict=True):
            rates[state] = retrieval_accuracy.rate_of(answers == wanted, wanted)
    controls["last state, captions shuffled"] = retrieval_accuracy.shuffled(named[0], asked)
    report = Report(
        states=[retrieval_accuracy.score(state, one) for state, one in outcomes.items()],
        controls=controls,
        changes=[
            retrieval_accuracy.change(first, outcomes[first], second, outcomes[second])
            for first, second in itertools.pairwise(outcomes)
        ],
        judges=by_judge if len(by_judge) > 1 else {},
    )
    return report, outcomes
