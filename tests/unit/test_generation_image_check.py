"""The image checker, with a small random classifier in the published layout: what is refused is nowhere written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.config import from_dict
from altdiffusion.curation.config import ScoreConfig
from altdiffusion.curation.scoring.score_work import ImageScorer
from altdiffusion.diffusion.pinned_files import folder_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.generation.sampler import Sampler
from altdiffusion.storage.dataset import Lake, Version
from pipelines.generate import GenerateJobConfig, check, pipeline_steps, survey, write_files
from tests import generation_lake
from tests.curation_lake import save_classifier


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generation_lake.make_lake(tmp_path_factory.mktemp("checked"), prompts=14)


@pytest.fixture(scope="module")
def scorer(lake: str) -> dict[str, Any]:
    folder = save_classifier(Path(lake) / "unsafe", ("safe", "unsafe"))
    classifier = {"folder": folder, "digest": folder_digest(folder), "label": "unsafe"}
    return {"nsfw": {"classifier": classifier}, "batch": 4, "threads": 2}


def job(lake: str, generations: str, image_check: dict[str, Any] | None = None, **changes: Any) -> GenerateJobConfig:
    generate = {
        "model": {"folder": f"{lake}/models/base"}, "prompts": {"file": f"{lake}/prompts.jsonl"}, "steps": 2,
        "guidance_scale": 2.0, "batch_rows": 4, "rows_per_unit": 64, "image_format": "jpg",
    }  # fmt: skip
    workers = {"max": 1, "gpus": int("'device': 'cuda'" in str(image_check))}
    tree = {"lake": lake, "generations": generations, "generate": {**generate, **changes}, "workers": workers}
    return from_dict(GenerateJobConfig, {**tree, **({"image_check": image_check} if image_check else {})})


def run(config: GenerateJobConfig) -> Version:
    for step in pipeline_steps(config):
        (version,) = run_pipeline_step(
            Lake(config.lake), step, backend="inline", progress=generation_lake.quiet(step.name)
        )
    return version


@pytest.fixture(scope="module")
def plain(lake: str) -> Version:
    return run(job(lake, "plain"))


@pytest.fixture(scope="module")
def scores(plain: Version, scorer: dict[str, Any]) -> dict[str, float]:
    images = plain.read(["id", "image"])
    found = ImageScorer(from_dict(ScoreConfig, scorer)).score(images["image"])[0]["nsfw"]
    return dict(zip(images["id"].to_pylist(), found.to_pylist(), strict=True))


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    seen: list[bytes] = []
    original: Callable[..., None] = Spill.add

    def add(self: Spill, unit_id: str, table: pa.Table) -> None:
        seen.extend(table["image"].to_pylist())
        original(self, unit_id, table)

    monkeypatch.setattr(Spill, "add", add)
    return seen


@pytest.mark.parametrize("naming", ["by_hash", "by_name"])
def test_a_refused_image_is_a_reject_and_nowhere_written(
    lake: str, plain: Version, scores: dict[str, float], scorer: dict[str, Any], spilled: list[bytes], naming: str
) -> None:
    limit = sorted(scores.values())[7]
    config = job(lake, f"checked-{naming}", {"score": scorer, "filter": {"nsfw_below": limit}}, image_files=naming)
    assert check(config) == []
    version = run(config)
    write_files(config, Lake(lake))
    kept = {name for name, score in scores.items() if score < limit - 1e-6}
    before = {row["id"]: row["image"] for row in plain.read().to_pylist()}
    assert {row["id"]: row["image"] for row in version.read().to_pylist()} == {one: before[one] for one in kept}
    assert version.manifest.rejects_by_reason == {"image_blocked": 14 - len(kept)} and 0 < len(kept) < 14
    details = [row["detail"] for table in version.iter_rejects() for row in table.to_pylist()]
    worst = max(scores, key=lambda one: scores[one])
    assert f"prompt {worst}, seed {worst[1:]}: nsfw {scores[worst]:.4g}" in details
    assert spilled and {*spilled} <= {before[one] for one in kept}
    refused = {before[one] for one in scores if one not in kept}
    folder = Path(version.folder_uri)
    shards = [pq.read_table(path) for path in folder.rglob("shards/*.parquet")]
    stored = [image for table in shards for image in table["image"].to_pylist()]
    named = [path.read_bytes() for path in folder.rglob("*.jpg")]
    assert {*stored} == {*named} == {before[one] for one in kept} and not refused & {*stored, *named}


def test_images_that_were_drawn_before_are_checked_too_and_not_drawn_again(
    lake: str, plain: Version, scores: dict[str, float], scorer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "_batch", lambda *_: pytest.fail("an image was drawn"))
    limit = sorted(scores.values())[3]
    version = run(job(lake, "plain", {"score": scorer, "filter": {"nsfw_below": limit}}))
    assert {row["id"] for row in version.read().to_pylist()} == {one for one in scores if scores[one] < limit - 1e-6}
    assert version.ref != plain.ref and version.manifest.config["image_check"]["filter"]["nsfw_below"] == limit


def test_a_checker_that_refuses_all_or_cannot_be_loaded_stops_the_job(lake: str, scorer: dict[str, Any]) -> None:
    with pytest.raises(AltDiffusionError, match=r"thresholds of image_check\.filter"):
        run(job(lake, "none", {"score": scorer, "filter": {"nsfw_below": -1.0}}))
    wrong = {**scorer, "nsfw": {"classifier": {**scorer["nsfw"]["classifier"], "label": "nsfw"}}}
    config = job(lake, "wrong", {"score": {**wrong, "device": "cuda"}, "filter": {"nsfw_below": 0.5}})
    with pytest.raises(AltDiffusionError, match="its labels are: safe, unsafe"):
        check(config)
    assert any("its labels are: safe, unsafe" in str(line) for line in vars_of(survey(config)))


def vars_of(found: Any) -> list[Any]:
    return [getattr(found, name) for name in found.__dataclass_fields__]


@pytest.mark.parametrize(
    ("filter", "problem"),
    [({}, "has no threshold"), ({"watermark_below": 0.5}, "which is not scored"),
     ({"nsfw_below": 0.5, "keep_null": ["nsfw"]}, "keeps images without a score")],
)  # fmt: skip
def test_a_checker_without_effect_is_refused(
    lake: str, scorer: dict[str, Any], filter: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AltDiffusionError, match=problem):
        job(lake, "x", {"score": scorer, "filter": filter})
