"""Features of drawn and real images, what is gathered of them, and what is refused before the work starts."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion.config import from_dict
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures import estimate, kernels
from altdiffusion.evaluation.measures.checks import check_measures
from altdiffusion.evaluation.measures.frechet import frechet_distance
from altdiffusion.evaluation.measures.gather import gather
from altdiffusion.evaluation.measures.measure import measure
from altdiffusion.evaluation.measures.moments import Moments
from altdiffusion.evaluation.measures.resize import resized
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.measures.texts import read_texts
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.storage.binary_columns import binary_rows, rows_of_binary
from altdiffusion.storage.dataset import Lake, Version
from pipelines.measures import MeasureJobConfig, pipeline_steps, survey
from tests import measure_lake
from tests.measure_lake import CODES, CONCEPTS, REAL, settings
from tests.measure_networks import SIDE, SmallInception


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measures")
    measure_lake.make_lake(folder)
    return folder


def config(root: Path, **changes: Any) -> MeasureJobConfig:
    return from_dict(MeasureJobConfig, measure_lake.config(root, str(root / "lake"), **changes))


@pytest.fixture(scope="module")
def made(root: Path) -> dict[str, Version]:
    chosen = config(root)
    lake = Lake(chosen.lake)
    return {n: run_pipeline_step(lake, step, backend="inline")[0] for n, step in pipeline_steps(chosen).items()}


def values(version: Version, column: str) -> np.ndarray:
    return rows_of_binary(version.read()[column], np.float32)


def test_features_are_those_of_each_image_in_order(root: Path, made: dict[str, Version]) -> None:
    rows = measure_lake.published(str(root / "lake"), "drawn").read()
    found = made["quality"].read()
    for name in ("id", "seed", "language", "image_sha256"):
        assert found[name].to_pylist() == rows[name].to_pylist()
    assert found["concept"].to_pylist() == [name.partition("-")[0] for name in rows["id"].to_pylist()]
    planes = [resized(Image.open(io.BytesIO(body)), SIDE, "clean") for body in rows["image"].to_pylist()]
    with torch.no_grad():
        expected = SmallInception()(torch.from_numpy(np.stack(planes)), return_features=True).numpy()
    np.testing.assert_allclose(values(made["quality"], "features"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(made["quality"], "probabilities").sum(1), 1, rtol=1e-5)
    native, english = (values(made["quality"], f"{name}_embedding") for name in ("text", "english"))
    is_english = np.array([code == "en" for code in rows["language"].to_pylist()])
    np.testing.assert_array_equal(native[is_english], english[is_english])
    np.testing.assert_array_equal(english[~is_english], english[np.repeat(np.flatnonzero(is_english), 2)])
    assert (native[~is_english] != english[~is_english]).any()


def test_real_images_have_no_text_and_the_same_image_has_the_same_features(made: dict[str, Version]) -> None:
    real = made["reference"].read()
    assert real.num_rows == 2 * REAL
    for name in ("seed", "concept", "probabilities", "text_embedding", "english_embedding"):
        assert real[name].null_count == real.num_rows
    features = values(made["reference"], "features")
    np.testing.assert_allclose(features[:REAL], features[REAL:], rtol=1e-5, atol=1e-6)


def test_units_in_any_order_and_again_give_the_same_version(root: Path, made: dict[str, Version]) -> None:
    chosen = config(root, name="again")
    lake = Lake(chosen.lake)
    step = pipeline_steps(chosen)["quality"]
    backwards = dataclasses.replace(step, units=lambda lake: list(reversed(step.units(lake))))
    (again,) = run_pipeline_step(lake, backwards, backend="inline")
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in made["quality"].shards]
    assert len(again.shards) == 7


def test_measures_are_those_of_all_features_at_once(root: Path, made: dict[str, Version]) -> None:
    chosen = config(root).measures
    found = measure(made["quality"], made["reference"], CODES, chosen)
    assert list(found) == ["fid", "kid", "cmmd", "is", "clip_sim_native", "clip_sim_english", "retrieval@1",
                           "retrieval@5"]  # fmt: skip
    rows, real = made["quality"].read(), values(made["reference"], "features")[:REAL]
    german = np.array([code == "de" for code in rows["language"].to_pylist()])
    features, images, texts, english = (
        values(made["quality"], name)[german]
        for name in ("features", "image_embedding", "text_embedding", "english_embedding")
    )
    fid = frechet_distance(Moments.of(features), Moments.of(real))
    assert found["fid"].languages["de"].value == pytest.approx(fid, rel=1e-6)
    embedded = values(made["reference"], "image_embedding")[:REAL]
    assert found["cmmd"].languages["de"].value == pytest.approx(kernels.cmmd(images, embedded)[0], rel=1e-6)
    whole = kernels.unbiased_mmd2(features.astype(float), real.astype(float))
    kid = found["kid"].languages["de"]
    assert kid.low is not None and kid.high is not None and kid.low < whole < kid.high
    assert found["clip_sim_native"].languages["de"].value == pytest.approx((images * texts).sum(1).mean(), rel=1e-5)
    assert found["clip_sim_english"].languages["de"].value == pytest.approx((images * english).sum(1).mean(), rel=1e-5)
    cosines = texts @ images.T
    best = (cosines >= np.diag(cosines)[:, None]).sum(1)
    assert found["retrieval@5"].languages["de"].value == pytest.approx((best <= 5).mean())
    assert found["clip_sim_native"].languages["en"] == found["clip_sim_english"].languages["en"]
    for name, one in found.items():
        assert one.mean.value == pytest.approx(np.mean([each.value for each in one.languages.values()]), abs=1e-9)
        assert all(each.rows == CONCEPTS for each in one.languages.values()) and one.mean.rows == 3 * CONCEPTS
        assert (one.mean.low is None) == (name == "fid")
    assert 1 <= found["is"].mean.value <= 5


def test_the_mean_takes_languages_of_one_concept_together(root: Path, made: dict[str, Version]) -> None:
    """With three copies of one language the mean's interval is that language's own, not narrower."""
    table = made["quality"].read()
    english = np.array([code == "en" for code in table["language"].to_pylist()])
    cosines = (values(made["quality"], "image_embedding") * values(made["quality"], "text_embedding")).sum(1)[english]
    concepts = [f"c{n}" for n in range(CONCEPTS)]
    one = estimate.of_groups(cosines, concepts)
    three = estimate.of_groups(np.tile(cosines, 3), concepts * 3, weights=np.full(3 * CONCEPTS, 1 / CONCEPTS))
    assert (three.value, three.low, three.high) == pytest.approx((one.value, one.low, one.high))


def test_the_sample_is_keyed_and_does_not_depend_on_the_units(root: Path, made: dict[str, Version]) -> None:
    chosen = dataclasses.replace(config(root).measures, sample=6)
    other = pipeline_steps(config(root, name="units", measures=settings(root, rows_per_unit=48)))["quality"]
    (whole,) = run_pipeline_step(Lake(str(root / "lake")), other, backend="inline")
    samples = [gather(version, chosen, language="ja").sample for version in (made["quality"], whole)]
    assert all(sample is not None for sample in samples)
    first, second = (sample["id"].to_pylist() for sample in samples if sample is not None)
    assert first == second and len(first) == 6
    reseeded = gather(whole, dataclasses.replace(chosen, seed=1), language="ja").sample
    assert reseeded is not None and reseeded["id"].to_pylist() != first


def test_binary_columns_are_arrays_again() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    import pyarrow as pa

    column = pa.chunked_array([binary_rows(rows[:1]), binary_rows(rows)[1:]])
    np.testing.assert_array_equal(rows_of_binary(column, np.float32), rows)
    with pytest.raises(ValueError, match="not one array"):
        rows_of_binary(pa.chunked_array([pa.array([b"abcd", None])]), np.float32)


def test_texts_bring_their_english(tmp_path: Path) -> None:
    rows = [
        {"id": "a-de", "concept": "a", "language": "de", "prompt": "Katze\u2028 nass"},
        {"id": "a-en", "concept": "a", "language": "en-GB", "prompt": "cat"},
        {"id": "b-de", "concept": "b", "language": "de", "prompt": "Hund", "english": "dog"},
        {"id": "c-de", "concept": "c", "language": "de", "prompt": "Maus"},
    ]
    path = tmp_path / "cases.jsonl"
    body = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    found = read_texts(str(path))
    assert [text.english for text in found.values()] == ["cat", "cat", "dog", None]
    path.write_text(body + "\n[]\n", encoding="utf-8")
    with pytest.raises(AltDiffusionError, match=r"row 5.*is unusable"):
        read_texts(str(path))


def problems(root: Path, **changes: Any) -> str:
    return " | ".join(str(problem) for problem in survey(config(root, **changes)).problems)


def test_a_dry_run_finds_what_would_stop_the_job(root: Path, tmp_path: Path) -> None:
    assert problems(root) == ""
    assert len(survey(config(root)).lines) == 5
    given = settings(root)
    network, judge = given["network"], given["judge"]
    wide = {**network, "width": CONCEPTS}
    for measures, problem in (
        (settings(root, network={**network, "sha256": "0" * 64}), f"has SHA-256 {network['sha256']}, not {'0' * 64}"),
        (settings(root, network={**network, "file": "none.pt"}), "is not there"),
        (settings(root, network=wide), rf"gives features \[6\], and width is {CONCEPTS}"),
        (settings(root, judge={**judge, "digest": "0" * 64}), f"has digest {judge['digest']}, not {'0' * 64}"),
        (settings(root, judge={**judge, "languages": ["en", "de"]}), "clip_sim_native and retrieval need ja as well"),
        (settings(root, reference="drawn"), "holds generations, not images"),
        (settings(root, reference="nothing"), "nothing"),
        (settings(root, reference_by_language=True), "holds no images in ja"),
    ):
        assert re.search(problem, found := problems(root, measures=measures)), found
    assert "holds images, not generations" in problems(root, states={"quality": "real"})
    with pytest.raises(AltDiffusionError, match="is the name of the real images"):
        config(root, states={"reference": "drawn"})
    with pytest.raises(AltDiffusionError, match="is not a valid name of a dataset"):
        config(root, states={"Quality": "drawn"})
    with pytest.raises(AltDiffusionError, match=r"measures.device.* needs a GPU, and workers.gpus: 0"):
        config(root, measures=settings(root, device="cuda"), execution={"backend": "ray"})
    with pytest.raises(AltDiffusionError, match=r"measures.device.* leaves the GPUs idle that workers.gpus: 1"):
        config(root, workers={"gpus": 1}, execution={"backend": "ray"})


def test_too_few_images_and_unknown_words_are_found_before_the_work(root: Path, tmp_path: Path) -> None:
    lake, path = Lake(str(root / "lake")), tmp_path / "few.jsonl"
    few = [row for row in measure_lake.prompts() if row["language"] != "de" or row["concept"] in ("c1", "c2")]

    def found(rows: list[dict[str, Any]], **changes: Any) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(AltDiffusionError) as error:
            check_measures(from_dict(MeasuresConfig, settings(root, **changes)), lake, str(path))
        return str(error.value)

    judged = {"network": None, "reference": None}
    assert "images in de: has 2 images, and FID over 6 features needs more than 6" in found(few)
    assert "retrieval@5 in de: would be 1 whatever is drawn, because it compares 2 images" in found(
        few, measures=["retrieval"], **judged
    )
    strange = [row | {"prompt": "strange"} for row in few]
    assert "does not know a word in 1 of 1 texts, e.g. 'strange'" in found(strange, measures=["retrieval"], **judged)
    foreign = [row for row in few if row["language"] != "en"]
    assert "has no English text for 18 of 18 prompts" in found(foreign, measures=["clip_sim_english"], **judged)


def test_images_that_are_drawn_count_and_not_prompts(root: Path) -> None:
    chosen = from_dict(MeasuresConfig, settings(root, measures=["fid"], judge=None))
    lake, cases = Lake(str(root / "lake")), str(root / "cases.jsonl")
    assert "7 images or more" in check_measures(chosen, lake, cases, {"en": 7, "de": 90})[0]
    with pytest.raises(AltDiffusionError, match="images in en: has 6 images"):
        check_measures(chosen, lake, cases, {"en": 6, "de": 90})


def test_an_unknown_prompt_is_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in measure_lake.prompts()[:-1]))
    step = pipeline_steps(config(root, name="unknown", cases=str(path)))["quality"]
    with pytest.raises(AltDiffusionError, match="prompt c15-ja: is not in the cases file"):
        run_pipeline_step(Lake(str(root / "lake")), step, backend="inline")
