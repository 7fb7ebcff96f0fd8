"""Generation without Ray: the dataset it makes, its repeatability, and what it refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import decode_images, images_folder
from altdiffusion.generation.model import resolve_model
from altdiffusion.records import PROMPT_ROW
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import damages_of
from tests import generation_lake, training_lake
from tests.flipped import flip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generation_lake.make_lake(tmp_path_factory.mktemp("generation"))


def test_every_prompt_becomes_one_image(lake: str) -> None:
    version = generation_lake.generate(lake, generation_lake.config(lake))
    rows = version.read().to_pylist()
    prompts = Lake(lake).version("prompts").read().to_pylist()
    assert [{field.name: row[field.name] for field in PROMPT_ROW} for row in rows] == [
        {field.name: row[field.name] for field in PROMPT_ROW} for row in prompts
    ]
    assert version.manifest.rows_by_language == {"de": 10, "en": 10, "ja": 10}
    for row in rows:
        assert row["image_sha256"] == hashlib.sha256(row["image"]).hexdigest()
        file = Path(images_folder(lake, "drawn")) / f"{row['image_sha256']}.png"
        assert file.read_bytes() == row["image"]
        assert decode_images([row["image"]]).shape == (1, row["height"], row["width"], 3)
        assert (row["sampler"], row["steps"], row["guidance_scale"]) == ("ddim", 2, 2.0)
        assert row["checkpoint"] == str(resolve_model(generation_lake.config(lake).model, lake).ref)
    assert damages_of(version) == []


def test_other_units_draw_the_same_images(lake: str) -> None:
    small = generation_lake.generate(lake, generation_lake.config(lake), dataset="small").read(["id", "image_sha256"])
    large = generation_lake.generate(
        lake, generation_lake.config(lake, rows_per_unit=28, image_files=False), dataset="large"
    ).read(["id", "image_sha256"])
    assert small.equals(large)
    assert not Path(images_folder(lake, "large")).exists()


def test_the_same_command_again_draws_nothing(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generation_lake.generate(lake, generation_lake.config(lake), dataset="again")
    monkeypatch.setattr("altdiffusion.diffusion.models.load_bundle", lambda *_: pytest.fail("a model was loaded"))
    assert generation_lake.generate(lake, generation_lake.config(lake), dataset="again").ref == first.ref


def test_an_export_is_found_by_its_run_and_named_by_its_checkpoint(lake: str) -> None:
    from altdiffusion.diffusion.models import save_bundle

    checkpoint = f"checkpoint:run-a/step-00000020@{'c' * 64}"
    for step in (10, 20):
        folder = Path(lake) / "exports" / "run-a" / f"step-{step:08d}"
        save_bundle(training_lake.bundle(step), folder)
        (folder / "lineage.json").write_text(f'{{"parents": ["{checkpoint}"]}}')
    newest = resolve_model(generation_lake.config(lake, model={"run": "run-a"}).model, lake)
    assert newest.uri.endswith("step-00000020")
    assert str(newest.ref) == checkpoint
    older = resolve_model(generation_lake.config(lake, model={"run": "run-a", "step": 10}).model, lake)
    assert older.content != newest.content
    with pytest.raises(AltDiffusionError, match=r"run run-a: has no export of step 15 .* steps 10, 20"):
        resolve_model(generation_lake.config(lake, model={"run": "run-a", "step": 15}).model, lake)
    with pytest.raises(AltDiffusionError, match=r"run run-b: has no export .* runs with exports: run-a"):
        resolve_model(generation_lake.config(lake, model={"run": "run-b"}).model, lake)


def test_the_wrong_or_a_changed_model_is_refused(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    settings = generation_lake.config(lake, model={"folder": f"{lake}/models/base", "digest": "0" * 12})
    with pytest.raises(AltDiffusionError, match=r"model folder .*models/base: has content .*, not 000000000000"):
        resolve_model(settings.model, lake)
    pinned = resolve_model(generation_lake.config(lake).model, lake)
    (Path(lake) / "models/base/lineage.json").write_text(f'{{"content": "{pinned.content}"}}')
    assert resolve_model(generation_lake.config(lake).model, lake).content == pinned.content

    weights = Path(lake) / "models/base/unet/diffusion_pytorch_model.safetensors"
    flip(weights, -5)
    with pytest.raises(AltDiffusionError, match="was changed or damaged"):
        resolve_model(generation_lake.config(lake).model, lake)

    from altdiffusion.generation.generate_work import GenerateWork

    with pytest.raises(AltDiffusionError, match="changed while images were drawn"):
        GenerateWork(lake, "drawn", pinned, generation_lake.config(lake)).setup()
    with pytest.raises(AltDiffusionError, match="holds no model_index"):
        resolve_model(generation_lake.config(lake, model={"folder": f"{lake}/models/none"}).model, lake)


def test_a_size_that_the_model_cannot_draw_is_named(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    file = Path(lake) / "prompts.jsonl"
    file.write_text(file.read_text().replace('"width": 16', '"width": 20', 1))
    with pytest.raises(AltDiffusionError, match=r"prompt p1 of .*: requires 20 x 16 pixels.*multiples of 8"):
        generation_lake.generate(lake, generation_lake.config(lake))


def test_images_survive_png(lake: str) -> None:
    from altdiffusion.generation.generate_work import encode_png

    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_images([encode_png(image)])[0], image)
