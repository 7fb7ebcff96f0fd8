"""Scores of a small random CLIP: one pass serves the embedding and every head; no neighbour or unit shows in them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.curation.config import HeadConfig, ScoreConfig
from altdiffusion.curation.scoring.embedding import ClipEmbedder
from altdiffusion.curation.scoring.score_work import ScoreWork, SourceAestheticScorer, make_scorer, plan_score
from altdiffusion.diffusion.clip_square import clip_square
from altdiffusion.diffusion.pinned_files import folder_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCORES
from altdiffusion.storage.dataset import Lake, Version
from tests.curation_lake import image, save_classifier, save_clip, save_head, sha256_of, write_images

ROWS = 11
PHOTOGRAPHS = [
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings of `ScoreConfig`: CLIP, a head that reads the first component, a small network, a classifier."""
    root = tmp_path_factory.mktemp("models")
    clip, classifier = save_clip(root / "clip"), save_classifier(root / "classifier")
    first = dict(zip(("uri", "sha256"), save_head(root / "first.pth"), strict=True))
    torch.manual_seed(2)
    layers = [("linear_1", torch.nn.Linear(768, 4)), ("linear_2", torch.nn.Linear(4, 1))]
    torch.save({f"{n}.{k}": v for n, layer in layers for k, v in layer.state_dict().items()}, root / "two.pth")
    two = {"uri": str(root / "two.pth"), "sha256": sha256_of(root / "two.pth"), "hidden": [4], "activation": "relu"}
    return {
        "clip": clip,
        "clip_digest": folder_digest(clip),
        "aesthetic_v1": {"head": first},
        "nsfw": {"head": {**two, "sigmoid": True}},
        "watermark": {"classifier": {"folder": classifier, "digest": folder_digest(classifier), "label": "watermark"}},
        "batch": 4,
        "rows_per_unit": 5,
        "threads": 2,
    }


def config(models: dict[str, Any], **changes: Any) -> ScoreConfig:
    return from_dict(ScoreConfig, {**models, **changes})


def score(lake: str, images: Version, settings: ScoreConfig) -> Version:
    work = ScoreWork(lake=lake, dataset="scores", config=settings)
    work.setup()
    records = [work.run(unit) for unit in plan_score(images, settings.rows_per_unit)]
    assert all(len(record.shards) == 1 for record in records)
    dataset = Lake(lake).dataset("scores")
    return dataset.publish(kind="scores", records=records, parents=[images.ref], config={}, fingerprint="f")


def by_id(version: Version) -> pa.Table:
    return version.read().sort_by("sample_id")


def test_one_pass_gives_the_embedding_and_every_configured_score(models: dict[str, Any], tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, pipeline

    images = write_images(str(tmp_path), range(ROWS))
    version = score(str(tmp_path), images, config(models))
    table = version.read()
    assert table.schema == SCORES and table["sample_id"].to_pylist() == images.read()["sample_id"].to_pylist()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    opened = [Image.open(io.BytesIO(body)).convert("RGB") for body in images.read()["image"].to_pylist()]
    with torch.no_grad():
        model: Any = CLIPModel.from_pretrained(models["clip"]).eval()
        tokens = torch.ones(ROWS, 4, dtype=torch.int64)
        pixels = processor(opened, return_tensors="pt")["pixel_values"]
        expected = model(input_ids=tokens, pixel_values=pixels).image_embeds  # CLIP's own forward normalises
    embedding = np.stack([np.frombuffer(row, "<f2") for row in table["embedding"].to_pylist()])
    assert embedding.shape == (ROWS, 768) and np.abs(embedding - expected.numpy()).max() < 2e-4  # float16 near 0.2
    assert table["aesthetic_v1"].to_pylist() == pytest.approx((3.0 + expected[:, 0]).tolist(), abs=1e-5)
    weights = torch.load(models["nsfw"]["head"]["uri"], weights_only=True)
    hidden = torch.relu(expected @ weights["linear_1.weight"].T + weights["linear_1.bias"])
    nsfw = torch.sigmoid(hidden @ weights["linear_2.weight"].T + weights["linear_2.bias"])[:, 0]
    assert table["nsfw"].to_pylist() == pytest.approx(nsfw.tolist(), abs=1e-5)
    ask: Any = pipeline("image-classification", model=models["watermark"]["classifier"]["folder"])
    answers = [next(a["score"] for a in answer if a["label"] == "watermark") for answer in ask(opened)]
    assert table["watermark"].to_pylist() == pytest.approx(answers, abs=1e-5)
    assert table["aesthetic_v2"].null_count == ROWS and len(set(table["watermark"].to_pylist())) == ROWS
    assert version.manifest.rows_by_language == {"de": 7, "fr": 4}


def test_scores_do_not_depend_on_order_unit_or_neighbours_but_for_rounding(
    models: dict[str, Any], tmp_path: Path
) -> None:
    order = list(range(ROWS))
    first = by_id(score(str(tmp_path / "a"), write_images(str(tmp_path / "a"), order), config(models)))
    for number, settings in enumerate([{"rows_per_unit": 3}, {"rows_per_unit": 100}]):
        lake = str(tmp_path / str(number))
        other = by_id(score(lake, write_images(lake, order[::-1]), config(models, **settings)))
        for name in ("sample_id", "image_sha256", "language"):
            assert other[name].equals(first[name])
        for name in ("aesthetic_v1", "nsfw", "watermark"):
            assert np.abs(other[name].to_numpy() - first[name].to_numpy()).max() < 2e-6, name
        halves = [np.frombuffer(b"".join(t["embedding"].to_pylist()), "<f2").astype(float) for t in (first, other)]
        assert np.abs(halves[0] - halves[1]).max() < 2e-4  # a last bit of float16


def test_a_unit_run_again_writes_the_same_bytes_whatever_the_threads(models: dict[str, Any], tmp_path: Path) -> None:
    digests = set()
    for threads in (0, 1, 3, 3):
        images = write_images(str(tmp_path), range(ROWS), bodies={4: b"no picture"})
        digests.add(score(str(tmp_path), images, config(models, threads=threads)).ref.digest)
    assert len(digests) == 1


def test_half_precision_is_declared_and_close(models: dict[str, Any], tmp_path: Path) -> None:
    images = write_images(str(tmp_path), range(ROWS))
    whole = score(str(tmp_path), images, config(models)).read()
    for dtype in ("bfloat16", "float16"):
        half = score(str(tmp_path), images, config(models, dtype=dtype)).read()
        assert not half.equals(whole)
        for name in ("aesthetic_v1", "nsfw", "watermark"):
            gap = np.abs(half[name].to_numpy() - whole[name].to_numpy())
            assert gap.max() < 0.02, (dtype, name)
    assert fingerprint(config(models)) != fingerprint(config(models, dtype="bfloat16"))
    assert fingerprint(config(models)) == fingerprint(config(models, threads=9, device="cuda"))
    assert fingerprint(config(models)) != fingerprint(config(models, batch=8))


def test_an_image_that_cannot_be_read_is_rejected_and_the_others_stay(models: dict[str, Any], tmp_path: Path) -> None:
    whole = image(1, (40, 36))
    bad = {1: b"no picture", 5: whole[: len(whole) // 2], 6: b"", 7: b"GIF89a", 8: b"\x89PNG\r\n", 9: whole[:-4]}
    images = write_images(str(tmp_path), range(ROWS), bodies=bad)
    version = score(str(tmp_path), images, config(models, rows_per_unit=4))
    good = [row for row in range(ROWS) if row not in bad or row == 9]  # 9 lacks but its checksum
    assert version.read()["sample_id"].to_pylist() == [1000 - 7 * row for row in good]
    rejects = pa.concat_tables(version.iter_rejects()).to_pylist()
    assert version.manifest.rejects_by_reason == {"decode": 5}
    assert [(r["row"], r["url"]) for r in rejects][:2] == [(1, "http://a/1"), (1, "http://a/5")]
    assert "UnidentifiedImageError" in rejects[0]["detail"]
    nothing = write_images(str(tmp_path / "b"), [1, 6], bodies=bad)
    assert score(str(tmp_path / "b"), nothing, config(models)).rows == 0


def test_clip_alone_or_a_classifier_alone_is_enough(models: dict[str, Any], tmp_path: Path) -> None:
    images = write_images(str(tmp_path), range(3))
    alone = {name: models[name] for name in ("clip", "clip_digest")}
    table = score(str(tmp_path), images, from_dict(ScoreConfig, alone)).read()
    assert table["embedding"].null_count == 0 and table["watermark"].null_count == table["aesthetic_v1"].null_count == 3
    table = score(str(tmp_path), images, from_dict(ScoreConfig, {"watermark": models["watermark"]})).read()
    assert table["embedding"].null_count == 3 and table["watermark"].null_count == 0


@pytest.mark.parametrize(("package", "name"), PHOTOGRAPHS)
def test_preprocessing_equals_clips_own_on_photographs(package: str, name: str, models: dict[str, Any]) -> None:
    import importlib.util

    from transformers import CLIPImageProcessorPil

    spec = importlib.util.find_spec(package)
    path = Path(str(spec and spec.origin)).parent / name
    if not path.is_file():
        pytest.skip(f"{package}'s {path.name} is not installed")
    embedder = ClipEmbedder(models["clip"], models["clip_digest"], device="cpu", dtype="float32")
    with Image.open(path) as file:
        whole = file.convert("RGB")
    processor = CLIPImageProcessorPil()
    for crop in ((0, 0, *whole.size), (3, 5, 304, 228), (10, 0, 131, 333), (50, 50, 250, 249), (0, 0, 224, 224)):
        rgb = whole.crop(crop)
        given = processor(rgb, return_tensors="np")["pixel_values"][0]
        made = embedder.normalise(clip_square(rgb, 224)[None].copy())[0].numpy()
        assert np.abs(made - given).max() < 1e-5, crop


def test_the_fused_scorer_gives_the_source_column_or_aesthetics_v1(models: dict[str, Any], tmp_path: Path) -> None:
    rows = pa.table({"image": pa.array([b"a", b"b"], pa.binary()), "aesthetic": pa.array([7.5, None])})
    scorer = make_scorer(ScoreConfig())
    assert isinstance(scorer, SourceAestheticScorer) and scorer.score(rows).to_pylist() == [7.5, None]
    assert scorer.requires == ("aesthetic",) and scorer.provides == "aesthetic_score"
    images = write_images(str(tmp_path), range(6), bodies={2: b"no picture"})
    found = make_scorer(config(models)).score(images.read())
    expected = score(str(tmp_path), images, config(models)).read()["aesthetic_v1"].to_pylist()
    assert found.type == pa.float32() and found.to_pylist() == [*expected[:2], None, *expected[2:]]
    assert make_scorer(config(models)).score(images.read().slice(0, 0)).to_pylist() == []
    with pytest.raises(AltDiffusionError, match=r"score.clip.*no aesthetic head"):
        make_scorer(config(models, aesthetic_v1=None))


def test_other_models_than_those_pinned_are_refused(models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="has digest"):
        make_scorer(config(models, clip_digest="0" * 64))
    settings = config(models)
    assert settings.watermark is not None and settings.watermark.classifier is not None
    for change, problem in (
        ({"digest": "0" * 64}, "has digest"),
        ({"label": "logo"}, r"has no label 'logo'.*clear, watermark"),
        ({"folder": models["clip"], "digest": models["clip_digest"]}, "cannot be opened"),
    ):
        scorer = dataclasses.replace(
            settings.watermark, classifier=dataclasses.replace(settings.watermark.classifier, **change)
        )
        work = ScoreWork(lake=str(tmp_path), dataset="x", config=dataclasses.replace(settings, watermark=scorer))
        with pytest.raises(AltDiffusionError, match=problem):
            work.setup()
    folder = models["watermark"]["classifier"]["folder"]
    with pytest.raises(AltDiffusionError, match="is a vit, not a CLIP model"):
        ClipEmbedder(folder, folder_digest(folder), device="cpu", dtype="float32")


def test_a_single_label_is_squashed_by_a_sigmoid(tmp_path: Path) -> None:
    from transformers import pipeline

    folder = save_classifier(tmp_path / "one", ["unsafe"])
    classifier = {"folder": folder, "digest": folder_digest(folder), "label": "unsafe"}
    images = write_images(str(tmp_path), range(3))
    table = score(str(tmp_path), images, from_dict(ScoreConfig, {"nsfw": {"classifier": classifier}})).read()
    ask: Any = pipeline("image-classification", model=folder)
    opened = [Image.open(io.BytesIO(body)) for body in images.read()["image"].to_pylist()]
    assert table["nsfw"].to_pylist() == pytest.approx([answer[0]["score"] for answer in ask(opened)], abs=1e-5)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"clip": "x"}, "clip_digest"),
        ({"clip_digest": "0" * 64}, "clip_digest"),
        ({"nsfw": {"head": {"uri": "x", "sha256": "0" * 64}}}, "clip"),
        ({"nsfw": {}}, "nsfw.head"),
        ({"nsfw": {"head": {"uri": "x", "sha256": "abc"}}}, "nsfw.head.sha256"),
        ({"nsfw": {"head": {"uri": "x", "sha256": "0" * 64, "hidden": [0]}}}, "nsfw.head.hidden.0"),
        ({"nsfw": {"classifier": {"folder": "x", "digest": "1", "label": "y"}}}, "nsfw.classifier.digest"),
        ({"batch": 0}, "batch"),
        ({"threads": -1}, "threads"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_an_invalid_setting_names_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        from_dict(ScoreConfig, values, "job.yaml")
    assert f"job.yaml, key {key}:" in str(caught.value)


def test_where_weights_are_does_not_change_the_fingerprint_but_which_they_are_does() -> None:
    heads = [HeadConfig(uri=uri, sha256=digit * 64) for uri, digit in (("a", "1"), ("b", "1"), ("a", "2"))]
    assert fingerprint(heads[0]) == fingerprint(heads[1]) != fingerprint(heads[2])
    assert hashlib.sha256(b"").hexdigest() != fingerprint(ScoreConfig())
