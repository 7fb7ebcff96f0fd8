"""The judges at work: the images of every state are named, and the answers become a report.

Shapes: J judges, M images, S = the judges' side in pixels, D features of a judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.evaluation import retrieval_accuracy
from altdiffusion.evaluation.judge import Judge
from altdiffusion.evaluation.judge_images import Codec, RealImages, read_images, small_images
from altdiffusion.evaluation.judge_training import kept_judge
from altdiffusion.evaluation.labels import USES, LabelledImages, Use
from altdiffusion.evaluation.outcomes import Case, Outcomes, outcomes_of
from altdiffusion.evaluation.state_variety import Read, SpaceOfImages
from altdiffusion.evaluation.statistics import Rate
from altdiffusion.evaluation.table import JudgeFacts, Report
from altdiffusion.evaluation.training_data import TrainingData
from altdiffusion.storage.dataset import Version

UNSEEN = "images that neither model nor judge saw"
UNSEEN_CODED = "the same through the autoencoder"
GENERATORS = "the model's own training images through the autoencoder"
TRAINING = "the judge's own training images through the autoencoder"
SHUFFLED = "last state, captions shuffled"
NO_CONTROL = (
    "No image is labelled `control`, so the control is training accuracy: it shows what the autoencoder costs, and not "
    "how well the judge reads images that it has not seen."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Judges of several seeds that were trained on the same real images."""

    judges: Mapping[int, Judge]
    """By seed."""
    names: NDArray[np.str_]
    """The concept of each of the judges' classes."""
    answers: NDArray[np.bool_]
    """Which of the classes are answers: those of the cases' concepts."""
    real: Mapping[Use, RealImages]
    """What they were trained on, and the controls."""
    side: int
    device: str

    @classmethod
    def train(
        cls,
        lake: str,
        labelled: LabelledImages,
        concepts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        side: int,
        device: str,
    ) -> Panel:
        """Return one judge per seed, trained on the images labelled for them or kept in the lake.

        Args:
            concepts: those of the cases, which the judges answer with.
        """
        real = read_images(labelled, side)
        teaching = real["judge"]
        names = np.unique(teaching.shown)
        answers = np.isin(names, np.array(sorted(concepts)))
        print(
            f"[judge] {len(seeds)} judges of {len(teaching):,} real images of {len(names):,} concepts at {side} "
            f"pixels, which answer with {int(answers.sum()):,} of them",
            flush=True,
        )
        judges = {
            seed: kept_judge(
                lake,
                teaching.pixels,
                teaching.shown,
                seed,
                rows=labelled.teaching,
                steps=steps,
                device=device,
                report=_report,
            )
            for seed in seeds
        }
        return cls(judges=judges, names=names, answers=answers, real=real, side=side, device=device)

    @property
    def facts(self) -> JudgeFacts:
        """What a report states about the judges."""
        return JudgeFacts(
            images=len(self.real["judge"]),
            learned=len(self.names),
            answers=int(self.answers.sum()),
            side=self.side,
        )

    def of_answers(self, use: Use) -> RealImages | None:
        """Return the images of a use that show a concept of the cases; None if there are none."""
        found = self.real.get(use)
        chosen = found.only(self.names[self.answers]) if found is not None else None
        return chosen if chosen is not None and len(chosen) else None

    def read(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return the concept that each judge names in each image [M, S, S, 3], as [J, M], and the first judge's
        features, [M, D]."""
        found = [judge.read(images) for judge in self.judges.values()]
        answers = self.names[self.answers]
        return np.stack([answers[chances[:, self.answers].argmax(1)] for chances, _ in found]), found[0][1]

    def read_version(self, version: Version) -> Read:
        """Return what `read` finds in the images of a version; those of one shard are held at a time."""
        ids: list[str] = []
        named, features = [], []
        for rows in version.iter_tables(["id", "image"]):
            ids += rows["id"].to_pylist()
            names, vectors = self.read(small_images(rows["image"].to_pylist(), self.side))
            named.append(names)
            features.append(vectors)
        if not ids:
            empty = self.read(np.zeros((0, self.side, self.side, 3), np.uint8))
            return Read(ids=(), named=empty[0], features=empty[1])
        return Read(ids=ids, named=np.concatenate(named, axis=1), features=np.concatenate(features))


def _report(text: str) -> None:
    print(f"[judge] {text}", flush=True)


def judged(
    panel: Panel,
    drawn: Mapping[str, Version],
    cases: Mapping[str, Case],
    images: Mapping[str, int],
    autoencoder: str,
    training: Mapping[str, TrainingData],
    compared_at_most: int,
    warnings: Sequence[str] = (),
) -> tuple[Report, dict[str, Outcomes]]:
    """Return the report on all states, and the outcomes of each.

    Args:
        drawn: the images of each state, in the order of the recipe.
        cases: by the prompt's id.
        images: number of images that were asked for, by the prompt's id.
        autoencoder: folder of the VAE through which controls show real images.
        training: what each state has learned from.
        compared_at_most: distinct training images of a state; if there are more, memorisation is not measured.
        warnings: what the report must state besides.
    """
    codec = Codec(autoencoder, panel.device)
    controls = real_controls(panel, codec)
    real = {use: one for use in USES if (one := panel.of_answers(use)) is not None}
    space = SpaceOfImages(lambda pixels: panel.read(codec(pixels))[1], panel.side, real, compared_at_most)
    outcomes: dict[str, Outcomes] = {}
    variety = {}
    by_judge: dict[int, dict[str, Rate]] = {seed: {} for seed in panel.judges}
    for state, version in drawn.items():
        read = panel.read_version(version)
        outcomes[state] = outcomes_of(cases, images, read.ids, read.named)
        asked = [cases[name] for name in read.ids]
        wanted = np.array([case.concept for case in asked])
        for rates, answers in zip(by_judge.values(), read.named, strict=True):
            rates[state] = retrieval_accuracy.rate_of(answers == wanted, wanted)
        variety[state] = space.variety(read, asked, training[state])
    controls[SHUFFLED] = retrieval_accuracy.shuffled(read.named[0], asked)
    report = Report(
        states=[retrieval_accuracy.score(state, one) for state, one in outcomes.items()],
        controls=controls,
        changes=[
            retrieval_accuracy.change(first, outcomes[first], second, outcomes[second])
            for first, second in itertools.pairwise(outcomes)
        ],
        judges=by_judge if len(by_judge) > 1 else {},
        judge=panel.facts,
        variety=variety,
        warnings=[*([] if UNSEEN in controls else [NO_CONTROL]), *warnings],
    )
    return report, outcomes


def real_controls(panel: Panel, codec: Codec) -> dict[str, Rate]:
    """Return how often the judges name real images of the cases' concepts right: images that they have not seen if
    there are any, else their own training images."""

    def rate(real: RealImages, coded: bool) -> Rate:
        pixels = codec(real.pixels) if coded else real.pixels
        return retrieval_accuracy.rate_of((panel.read(pixels)[0] == real.shown).mean(axis=0), real.shown)

    rates: dict[str, Rate] = {}
    control, generator, teaching = (panel.of_answers(use) for use in ("control", "generator", "judge"))
    if control is not None:
        rates |= {UNSEEN: rate(control, False), UNSEEN_CODED: rate(control, True)}
    elif teaching is not None:
        rates[TRAINING] = rate(teaching, True)
    if generator is not None:
        rates[GENERATORS] = rate(generator, True)
    return rates
