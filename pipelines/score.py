"""Scoring: images -> embedding, aesthetics, NSFW and watermark scores, by one pass of CLIP per image."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from altdiffusion.config import operational, semantic
from altdiffusion.constraints import DATASET_NAME, Invalid
from altdiffusion.curation.config import ScoreConfig
from altdiffusion.curation.scoring.score_work import ScoreWork, plan_score
from altdiffusion.diffusion.pinned_files import check_folder, load_tensors
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at, make_pipeline_step, units_line
from pipelines.estimates import WorkEstimateConfig, work_line


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJobConfig(JobConfig):
    """`jobs/score.py`."""

    name: str = operational("score")
    """Name of the run in MLflow."""
    images: str = "images"
    """Dataset to read: `name`, or `name@digest` to pin a version."""
    scores: Annotated[str, DATASET_NAME] = "scores"
    """Name of the dataset that the job makes."""
    score: ScoreConfig
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.score.clip is None and not self.score.classifiers:
            yield Invalid("score", "names no model", "give score.clip with its digest, or a classifier")
        yield from device_conflicts(self, self.workers, {"score.device": self.score.device})

    @property
    def run_name(self) -> str:
        return self.name


def models(config: ScoreConfig) -> dict[str, Ref]:
    """Return references to the model files and folders by purpose, by their pinned digests and without reading them."""
    found = {} if config.clip is None else {"clip": _ref(config.clip, str(config.clip_digest))}
    found |= {name: _ref(head.uri, head.sha256) for name, head in config.heads.items()}
    return found | {name: _ref(model.folder, model.digest) for name, model in config.classifiers.items()}


def _ref(uri: str, digest: str) -> Ref:
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", PurePosixPath(uri.rstrip("/")).name)
    return Ref("model", name or "model", digest)


def model_looks(config: ScoreConfig, remote: bool) -> list[Callable[[Lake], list[str]]]:
    """Return a look at each model, which raises where it is missing or another one than the config pins.

    Args:
        remote: whether files on other machines are read too.
    """
    folders = [(config.clip, config.clip_digest)] if config.clip is not None else []
    folders += [(model.folder, model.digest) for model in config.classifiers.values()]
    heads = [(head.uri, head.sha256) for head in config.heads.values()]

    def folder_there(uri: str, digest: str | None, _: Lake) -> list[str]:
        check_folder(uri, digest)
        return []

    def file_there(uri: str, sha256: str, _: Lake) -> list[str]:
        load_tensors(uri, sha256)
        return []

    def here(uri: str) -> bool:
        return remote or files.is_local(uri)

    return [
        *(functools.partial(folder_there, str(uri), digest) for uri, digest in folders if here(str(uri))),
        *(functools.partial(file_there, uri, sha256) for uri, sha256 in heads if here(uri)),
    ]


def pipeline_steps(config: ScoreJobConfig) -> tuple[PipelineStep, ...]:
    """Return the one pipeline step. The models are its parents: different weights make a different version."""
    refs = list(models(config.score).values())

    def parents(lake: Lake) -> Sequence[Ref]:
        return [lake.version(config.images).ref, *refs]

    return (
        make_pipeline_step(
            name="score",
            output=config.scores,
            settings={"score": semantic(config.score)},
            workers=config.workers,
            noun="images",
            kind="scores",
            parents=parents,
            units=lambda lake: plan_score(
                lake.version(config.images), config.score.rows_per_unit, *(str(ref) for ref in refs)
            ),
            work=lambda _: ScoreWork(lake=config.lake, dataset=config.scores, config=config.score),
            when_empty="inspect the rejects: none of the images could be decoded",
        ),
    )


def survey(config: ScoreJobConfig, remote: bool = False) -> Survey:
    """Return how much there is to do, and whether the images or a model are missing."""
    return look_at(
        config.lake,
        remote,
        lambda lake: units_line(lake, pipeline_steps(config)[0]),
        *model_looks(config.score, remote),
        more=work_line(config.estimate, config.workers.max),
    )


def plan(config: ScoreJobConfig) -> Plan:
    """Return what the job will do."""
    score = config.score
    return Plan(
        title=f"score dataset {config.images}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts={
            **{name: ref.short.removeprefix("model:") for name, ref in models(score).items()},
            "forward passes": f"{score.batch} images, {score.dtype}, {score.device}, {score.threads} decode threads",
        },
    )
