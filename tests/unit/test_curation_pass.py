"""One pass that makes two resolutions: the same versions as two passes, exactly once under kills at every write."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from altdiffusion.config import from_dict
from altdiffusion.curation.encoding import encode_work as encoding
from altdiffusion.curation.encoding.latent_encoder import LatentEncoder
from altdiffusion.curation.scoring.score_work import ScoreWork
from altdiffusion.diffusion.pinned_files import folder_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.data.validation_rows import check_held_out
from pipelines import score as scoring
from pipelines.encode import EncodeJobConfig, pipeline_steps, plan, survey
from pipelines.score import ScoreJobConfig
from tests.curation_lake import save_clip, save_head, write_images
from tests.encode_job import job, run, save_models
from tests.unit.test_curation_scored import write_scores

ROWS = 8
ALSO = {"latents": "small", "resolution": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**save_models(tmp_path_factory.mktemp("models")), "rows_per_unit": 3, "threads": 2}


def digests(versions: dict[str, Version]) -> dict[str, str]:
    return {name: version.ref.digest for name, version in versions.items()}


def publish_images(lake: Path) -> Version:
    """Publish images; rows 2 and 5 are too small for 32 pixels, row 3 is not an image."""
    return write_images(str(lake), range(ROWS), {2: (40, 31), 5: (20, 20)}, bodies={3: b"no picture"})


def test_one_pass_makes_the_versions_of_two_and_reads_an_image_once(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_images(tmp_path / "apart")
    apart = digests(run(job(tmp_path / "apart", models)))
    apart |= digests(run(job(tmp_path / "apart", models, latents="small", encode={"resolution": 16})))
    publish_images(tmp_path / "once")
    opened: list[bytes] = []
    monkeypatch.setattr(encoding, "open_rgb", counting(encoding.open_rgb, opened))
    config = job(tmp_path / "once", models, also=[ALSO])
    once = run(config)
    assert digests(once) == apart and len(opened) == ROWS
    assert once["latents"].manifest.rejects_by_reason == {"decode": 1, "resolution": 2}
    assert once["small"].manifest.rejects_by_reason == {"decode": 1} and once["small"].rows == ROWS - 1
    assert set(once["small"].read()["resolution"].to_pylist()) == {16}
    assert "32 and 16 px" in "\n".join(plan(config).lines())


def test_held_out_images_are_apart_at_every_resolution(tmp_path: Path, models: dict[str, Any]) -> None:
    """By the image: the datasets of one pass agree, and without it nothing is held out."""
    publish_images(tmp_path)
    whole = run(job(tmp_path, models, also=[ALSO]))
    parts = run(job(tmp_path, models, also=[ALSO], held_out=0.5))
    assert set(parts) == {"latents", "latents-held-out", "small", "small-held-out"}
    images = {name: set(version.read()["image_sha256"].to_pylist()) for name, version in parts.items()}
    for name in ("latents", "small"):
        held = images[f"{name}-held-out"]
        assert held and images[name] and not held & images[name]
        assert held | images[name] == set(whole[name].read()["image_sha256"].to_pylist())
        for side in (parts[name], parts[f"{name}-held-out"]):
            assert side.rows + sum(side.manifest.rejects_by_reason.values()) == ROWS
    assert images["latents-held-out"] <= images["small-held-out"]
    check_held_out(parts["latents-held-out"], [parts["latents"]])
    with pytest.raises(AltDiffusionError, match="in common with"):
        check_held_out(parts["latents-held-out"], [whole["latents"]])


def counting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        calls.append(args[0])
        return function(*args)

    return counted


def test_what_is_recorded_is_only_published(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for one output alone: a lake whose versions are gone, and then a config without the first output."""
    publish_images(tmp_path)
    config = job(tmp_path, models, also=[ALSO])
    before = digests(run(config))
    monkeypatch.setattr(encoding.EncodeWork, "setup", lambda _: pytest.fail("a model was loaded"))
    for name in before:
        shutil.rmtree(tmp_path / "datasets" / name / "versions")
    assert digests(run(config)) == before
    shutil.rmtree(tmp_path / "datasets/small/versions")
    alone = run(job(tmp_path, models, latents="small", encode={"resolution": 16}))
    assert digests(alone) == {"small": before["small"]} and alone["small"].rows == ROWS - 1


def test_a_lost_shard_of_one_resolution_is_made_again_alone(tmp_path: Path, models: dict[str, Any]) -> None:
    publish_images(tmp_path)
    config = job(tmp_path, models, also=[ALSO])
    before = run(config)
    for name in before:
        Path(before[name].shard_uri(1)).unlink()
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets").rglob("*.parquet")}
        assert digests(run(config)) == digests(before)
        new = {path for path in (tmp_path / "datasets").rglob("*.parquet") if path not in kept}
        assert new == {Path(before[name].shard_uri(1))}


class Killed(BaseException):
    """Acts as SIGKILL does: nothing in the code may catch it."""


def durable_writes(monkeypatch: pytest.MonkeyPatch, kill_at: int, after: bool) -> list[str]:
    """Return the list of files written whole from now on; at number `kill_at` the process dies, before or after it."""
    written: list[str] = []

    def hooked(name: str) -> None:
        real = getattr(files, name)

        def write(uri: str, data: bytes) -> Any:
            dies = len(written) == kill_at
            if dies and not after:
                raise Killed
            result = real(uri, data)
            written.append(uri)
            if dies:
                raise Killed
            return result

        monkeypatch.setattr(files, name, write)

    hooked("write_atomic")
    hooked("put_if_absent")
    return written


def kill_points() -> Iterator[tuple[int, bool]]:
    return ((number, after) for number in range(20) for after in (False, True))


def test_killed_at_any_write_and_run_again_it_ends_in_the_same_versions_each_unit_done_once(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"also": [ALSO]}
    publish_images(tmp_path / "undisturbed")
    expected = digests(run(job(tmp_path / "undisturbed", models, **settings)))
    encoder = LatentEncoder(pipeline_steps_encode(job(tmp_path, models)))
    monkeypatch.setattr(encoding, "LatentEncoder", lambda _: encoder)
    kills = 0
    for number, after in kill_points():
        lake = tmp_path / f"{number}-{after}"
        publish_images(lake)
        config = job(lake, models, **settings)
        with monkeypatch.context() as patched:
            written = durable_writes(patched, number, after)
            try:
                run(config)
            except Killed:
                kills += 1
            recorded = {uri for uri in written if "/ledger/" in uri}
        with monkeypatch.context() as patched:
            again = durable_writes(patched, -1, False)
            assert digests(run(config)) == expected, (number, after)
            assert not recorded & set(again), "a recorded unit was done again"
        ledgers = [path.name for path in (lake / "datasets").rglob("ledger/*/*.json")]
        assert len(ledgers) == 6
    assert kills >= 30  # of 40: the last few points are behind the end


def pipeline_steps_encode(config: EncodeJobConfig) -> Any:
    return config.encode


def test_each_resolution_has_its_own_filter_and_aesthetics_come_from_the_scores(
    tmp_path: Path, models: dict[str, Any]
) -> None:
    lake = str(tmp_path)
    images = write_images(lake, range(ROWS), {2: (40, 31)})
    values = {
        "aesthetic_v1": [6.0, 7.0, 7.5, 8.0, None, 9.0, 9.5, 7.25],
        "nsfw": [0.1, 0.1, 0.1, 0.9, 0.1, 0.5, 0.1, 0.1],
        "watermark": [0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.9, None],
    }
    write_scores(lake, images, 5, values=values, lost=[4])
    chosen = {"aesthetic_v1_above": 7.0, "nsfw_below": 0.5, "watermark_below": 0.8, "keep_null": ["watermark"]}
    config = job(lake, models, scores="scores", filter=chosen, also=[{**ALSO, "filter": {"nsfw_below": 0.9}}])
    versions = run(config)
    large, small = versions["latents"], versions["small"]
    assert large.read()["sample_id"].to_pylist() == [1000 - 7 * 7]
    assert large.manifest.rejects_by_reason == {"aesthetic": 3, "nsfw": 2, "resolution": 1, "watermark": 1}
    rejects = pa.concat_tables(large.iter_rejects()).to_pylist()
    assert [(r["sample_id"], r["reason"], r["detail"]) for r in rejects][:4] == [
        (1000, "aesthetic", "aesthetic_v1 6"),
        (993, "aesthetic", "aesthetic_v1 7"),
        (986, "resolution", "31 px"),
        (979, "nsfw", "nsfw 0.9"),
    ]
    assert small.read()["aesthetic"].to_pylist() == [6.0, 7.0, 7.5, 9.0, 9.5, 7.25]
    assert small.manifest.rejects_by_reason == {"nsfw": 2}
    assert [ref.kind for ref in small.manifest.parent_refs] == ["dataset", "dataset", "model", "model"]
    assert small.manifest.parents[1] == str(Lake(lake).version("scores").ref)
    printed = "\n".join(plan(config).lines())
    assert "aesthetic_v1 > 7, nsfw < 0.5, watermark < 0.8; nsfw < 0.9 (dataset scores)" in printed
    plain = run(job(lake, models, latents="plain"))["plain"]
    assert plain.read()["aesthetic"].to_pylist() == [7.0, 8.0, 8.0, 7.0, 8.0, 7.0, 8.0]


def test_scores_made_by_their_job_decide_what_encode_takes(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """jobs.score and jobs.encode one after the other: units of other sizes, one image that cannot be read."""
    clip, (head, sha256) = save_clip(tmp_path / "clip"), save_head(tmp_path / "head.pth")
    images = write_images(str(tmp_path), range(ROWS), bodies={3: b"no picture"}, rows_per_shard=5)
    measured = {"head": {"uri": head, "sha256": sha256}}
    score = {"clip": clip, "clip_digest": folder_digest(clip), "aesthetic_v1": measured, "batch": 4, "rows_per_unit": 2}
    config = from_dict(ScoreJobConfig, {"lake": str(tmp_path), "score": score})
    (pipeline_step,) = scoring.pipeline_steps(config)
    quiet = Progress("score", stream=io.StringIO())
    (scores,) = run_pipeline_step(Lake(str(tmp_path)), pipeline_step, backend="inline", progress=quiet)
    assert scores.manifest.parents == (
        str(images.ref),
        f"model:clip@{score['clip_digest']}",
        f"model:head.pth@{sha256}",
    )
    assert scores.rows == ROWS - 1 and "head.pth@" in "\n".join(scoring.plan(config).lines())
    with monkeypatch.context() as patched:
        patched.setattr(ScoreWork, "setup", lambda _: pytest.fail("a model was loaded"))
        (again,) = run_pipeline_step(Lake(str(tmp_path)), pipeline_step, backend="inline", progress=quiet)
    assert again.ref == scores.ref
    table = scores.read()
    middle = sorted(table["aesthetic_v1"].to_pylist())[3]
    chosen = {"aesthetic_v1_above": middle}
    latents = run(job(tmp_path, models, scores="scores", filter=chosen))["latents"]
    expected = table.filter(pc.greater(table["aesthetic_v1"], pa.scalar(middle, pa.float32())))
    found = latents.read()
    for name, other in (("sample_id", "sample_id"), ("aesthetic", "aesthetic_v1")):
        assert found[name].to_pylist() == expected[other].to_pylist()
    assert latents.manifest.rejects_by_reason == {"aesthetic": 5} and latents.rows == 3
    with pytest.raises(AltDiffusionError, match=r"key score: .*names no model"):
        from_dict(ScoreJobConfig, {"lake": "x", "score": {}})


def test_scores_that_do_not_fit_are_refused_before_work(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = str(tmp_path)
    images = write_images(lake, range(3))
    write_scores(lake, images, 5)
    write_images(lake, range(4))
    monkeypatch.setattr(encoding.EncodeWork, "setup", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(AltDiffusionError, match="was not made from dataset:images@"):
        run(job(lake, models, scores="scores"))
    pinned = f"images@{images.ref.digest}"
    with pytest.raises(AltDiffusionError, match="holds no watermark"):
        run(job(lake, models, images=pinned, scores="scores", filter={"watermark_below": 0.5}))


def test_a_resolution_above_the_stored_size_is_an_error_before_work(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"download": {"image_size": 32, "resize_mode": "keep_ratio"}}
    images = write_images(str(tmp_path), range(3), config=config)
    monkeypatch.setattr(encoding.EncodeWork, "setup", lambda _: pytest.fail("a model was loaded"))
    for settings in ({"encode": {"resolution": 64}}, {"also": [{**ALSO, "resolution": 64}]}):
        with pytest.raises(AltDiffusionError, match=f"resolution 64: is more than the 32 pixels.*{images.ref}"):
            run(job(tmp_path, models, **settings))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"also": [{"latents": "latents", "resolution": 16}]}, "also"),
        ({"also": [{"latents": "a", "resolution": 20}]}, "also.0.resolution"),
        ({"filter": {"nsfw_below": 0.5}}, "scores"),
        ({"also": [{**ALSO, "filter": {"nsfw_below": 0.5}}]}, "scores"),
    ],
)
def test_an_invalid_job_names_its_key(settings: dict[str, Any], key: str, models: dict[str, Any]) -> None:
    with pytest.raises(AltDiffusionError, match=f"key {key}:"):
        job("unused", models, **settings)


def test_the_pipeline_step_has_two_datasets_of_latents_and_one_line_names_both(models: dict[str, Any]) -> None:
    config = job("unused", models, also=[ALSO])
    (step,) = pipeline_steps(config)
    large, small = step.outputs
    assert [(b.dataset, b.kind) for b in step.outputs] == [("latents", "latents"), ("small", "latents")]
    assert large.fingerprint != small.fingerprint
    alone = pipeline_steps(job("unused", models, latents="small", encode={"resolution": 16}))[0].output
    assert alone.fingerprint == small.fingerprint and alone.settings == small.settings
    assert plan(config).lines()[1].startswith("  1. encode -> datasets latents, small (latents), 1-2 workers")
    assert step.progress().line().startswith("[encode -> datasets latents, small] ")


def test_the_dry_run_names_all_outputs(tmp_path: Path, models: dict[str, Any]) -> None:
    publish_images(tmp_path)
    looked = survey(job(tmp_path, models, also=[ALSO]))
    assert (list(looked.lines), looked.problems) == (["encode  3 units of images for datasets latents, small"], [])
